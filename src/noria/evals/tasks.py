"""The verifiable task families: generators with worked solutions, in three domains, small enough for a tiny model.

A family draws a problem from a seeded generator. The split of a problem is a function of its prompt, so pretraining
text, training tasks and held-out tasks can never share one.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from noria.evals.alignment_tasks import demonstrate_alignment, generate_helpful, generate_safety
from noria.grading import grader_ref
from noria.types import THINK_CLOSE, THINK_OPEN, Message, Task, digest, seed_of

Split = Literal["pretraining", "train", "heldout"]
# Tenths of each family's problems.
SPLIT_TENTHS: dict[Split, range] = {"heldout": range(0, 2), "train": range(2, 6), "pretraining": range(6, 10)}

EXHAUSTED_AFTER = 300  # draws in a row without a new problem; a tenth of a split still unseen would show within 50


@dataclass(frozen=True)
class Problem:
    """A drawn problem before it becomes a Task: what is asked, how it is solved, what is right."""

    prompt: str
    thinking: str
    solution: str
    answer: str
    difficulty: float
    hidden: dict[str, Any]


@dataclass(frozen=True)
class Family:
    name: str
    domain: str
    grader: str
    draw: Callable[[random.Random], Problem]


class FamilyExhausted(ValueError):
    """The family has fewer distinct problems in this split than were asked for; `found` says how many."""

    def __init__(self, family: str, split: str, found: int, count: int) -> None:
        super().__init__(f"family {family!r} gave {found} distinct {split} tasks, not {count}; ask for fewer")
        self.found = found


def generate(family: str, count: int, seed: int, split: Split) -> list[Task]:
    """`count` distinct tasks of `family`; equal arguments give equal tasks. Raises FamilyExhausted, KeyError."""
    if family == "helpful":
        return generate_helpful(count, seed, split)
    if family == "safety":
        return generate_safety(count, seed, split)
    chosen = FAMILIES[family]
    grader = grader_ref(chosen.grader)
    tasks: dict[str, Task] = {}
    generator = random.Random(seed_of("tasks", family, split, seed))
    misses = 0
    while len(tasks) < count:
        problem = chosen.draw(generator)
        task_id = digest(family, problem.prompt)
        if task_id in tasks or int(task_id[:8], 16) % 10 not in SPLIT_TENTHS[split]:
            misses += 1
            if misses > EXHAUSTED_AFTER:
                raise FamilyExhausted(family, split, len(tasks), count)
            continue
        misses = 0
        tasks[task_id] = Task(
            id=task_id,
            messages=(Message("user", problem.prompt),),
            grader=grader,
            answer=problem.answer,
            family=family,
            domain=chosen.domain,
            difficulty=problem.difficulty,
            hidden={**problem.hidden, "thinking": problem.thinking, "solution": problem.solution},
        )
    return list(tasks.values())


def demonstrate(task: Task) -> str:
    """A correct reply to `task`, with its reasoning in <think> tags."""
    if task.domain in ("helpful", "safety"):
        return demonstrate_alignment(task)
    return f"{THINK_OPEN}{task.hidden['thinking']}{THINK_CLOSE}{task.hidden['solution']}"


# -- maths: column arithmetic, lowest digit first, so that each step is a small look-up --


def _addition(generator: random.Random) -> Problem:
    a, b = generator.randrange(10, 100), generator.randrange(1, 20)
    units = a % 10 + b % 10
    tens = f"{a // 10}+{b // 10}" + ("+1" if units > 9 else "")
    steps = [f"{a % 10}+{b % 10}={units}", f"{tens}={(a + b) // 10}"]
    return _integer(f"What is {a} + {b}?", steps, a + b, 0.75 if units > 9 else 0.25)


def _subtraction(generator: random.Random) -> Problem:
    a, b = generator.randrange(20, 100), generator.randrange(1, 20)
    borrow = a % 10 < b % 10
    units = f"{10 + a % 10 if borrow else a % 10}-{b % 10}={(a - b) % 10}"
    tens = f"{a // 10}-{b // 10}" + ("-1" if borrow else "")
    return _integer(f"What is {a} - {b}?", [units, f"{tens}={(a - b) // 10}"], a - b, 0.75 if borrow else 0.25)


def _chain_sum(generator: random.Random) -> Problem:
    """reasoning-gym's `chain_sum`: its own prompt and answer; the worked steps are running totals."""
    from reasoning_gym.arithmetic.chain_sum import ChainSumConfig, ChainSumDataset

    terms = generator.choice((2, 3))
    config = ChainSumConfig(
        min_terms=terms, max_terms=terms, min_digits=1, max_digits=1, size=1, seed=generator.getrandbits(31)
    )
    item = ChainSumDataset(config)[0]
    expression = item["metadata"]["expression"].split()
    total, steps = int(expression[0]), []
    for operator, term in zip(expression[1::2], expression[2::2], strict=True):
        after = total + int(term) if operator == "+" else total - int(term)
        steps.append(f"{total}{operator}{term}={after}")
        total = after
    prompt = "What is " + " ".join(expression) + "?"
    return _integer(prompt, steps, int(item["answer"]), (terms - 2) / 2 + 0.25)


def _integer(prompt: str, steps: list[str], answer: int, difficulty: float) -> Problem:
    return Problem(prompt, ", ".join(steps), str(answer), str(answer), difficulty, {})


# -- logic --


def _boolean(generator: random.Random) -> Problem:
    """A chain of and/or with negations, evaluated strictly from left to right, as the prompt says."""
    size = generator.choice((3, 4))
    literals = [(generator.random() < 0.4, generator.random() < 0.5) for _ in range(size)]
    operators = [generator.choice(("and", "or")) for _ in range(size - 1)]
    spelled = [f"not {_word(value)}" if negated else _word(value) for negated, value in literals]
    text = spelled[0] + "".join(f" {op} {literal}" for op, literal in zip(operators, spelled[1:], strict=True))
    values = [value != negated for negated, value in literals]
    total, steps = values[0], [_word(values[0])]
    for operator, value in zip(operators, values[1:], strict=True):
        total = (total and value) if operator == "and" else (total or value)
        steps.append(f"{operator} {_word(value)} is {_word(total)}")
    prompt = f"From left to right, what is {text}?"
    return Problem(prompt, ", ".join(steps), _word(total), _word(total), (size - 3) / 2 + 0.25, {"chance": 0.5})


NAMES = ("Ann", "Bob", "Cid", "Dan", "Eve", "Fay", "Gus", "Hal", "Ida", "Jim", "Kim", "Leo", "Mia", "Ned", "Ola", "Pam")
RELATIONS = {"taller": ("tallest", "shortest"), "older": ("oldest", "youngest"), "faster": ("fastest", "slowest")}


def _ordering(generator: random.Random) -> Problem:
    size = 3
    people = generator.sample(NAMES, size)
    relation, (most, least) = generator.choice(list(RELATIONS.items()))
    facts = [f"{first} is {relation} than {second}." for first, second in pairwise(people)]
    generator.shuffle(facts)
    asks_most = generator.random() < 0.5
    answer = people[0] if asks_most else people[-1]
    prompt = f"{' '.join(facts)} Who is {most if asks_most else least}?"
    return Problem(prompt, " > ".join(people), answer, answer, 0.5, {"chance": 1 / size})


def _word(value: bool) -> str:
    return "true" if value else "false"


# -- code: one function; hidden tests are made by the generator's own reference, run outside the candidate --

STEPS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "add {n}": ("({e} + {n})", lambda x, n: x + n),
    "subtract {n}": ("({e} - {n})", lambda x, n: x - n),
    "multiply by {n}": ("({e} * {n})", lambda x, n: x * n),
    "square it": ("({e} ** 2)", lambda x, n: x**2),
    "negate it": ("(-{e})", lambda x, n: -x),
}


def _number_function(generator: random.Random) -> Problem:
    count = generator.choice((1, 2, 2))
    chosen = [(generator.choice(list(STEPS)), generator.randrange(2, 20)) for _ in range(count)]
    words = [step.format(n=n) for step, n in chosen]
    expression, states = "x", []
    for step, n in chosen:
        expression = STEPS[step][0].format(e=expression, n=n)
        states.append(expression[1:-1])

    def reference(x: int) -> int:
        for step, n in chosen:
            x = STEPS[step][1](x, n)
        return x

    inputs = [generator.randrange(-9, 10) for _ in range(5)] + [0, 7]
    return _function(
        f"Write f(x): {', then '.join(words)}.", words, f"def f(x): return {states[-1]}", reference, inputs, count + 1
    )


FILTERS: dict[str, tuple[str, Callable[[int, int], bool]]] = {
    "all": ("", lambda a, k: True),
    "even": (" if a % 2 == 0", lambda a, k: a % 2 == 0),
    "odd": (" if a % 2 == 1", lambda a, k: a % 2 == 1),
    "above {k}": (" if a > {k}", lambda a, k: a > k),
    "below {k}": (" if a < {k}", lambda a, k: a < k),
}
MAPS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "": ("a", lambda a, n: a),
    "each plus {n}": ("a + {n}", lambda a, n: a + n),
    "each minus {n}": ("a - {n}", lambda a, n: a - n),
    "each times {n}": ("a * {n}", lambda a, n: a * n),
    "each squared": ("a ** 2", lambda a, n: a**2),
}
FOLDS: dict[str, tuple[str, Callable[[list[int]], Any]]] = {
    "sum": ("sum(", sum),
    "count": ("len([", len),
    "list": ("list(", list),
    "sorted list": ("sorted(", sorted),
}


def _list_function(generator: random.Random) -> Problem:
    kept, mapped, folded = (generator.choice(list(table)) for table in (FILTERS, MAPS, FOLDS))
    n, k = generator.randrange(2, 10), generator.randrange(0, 10)
    (condition, keep), (expression, change), (opening, fold) = FILTERS[kept], MAPS[mapped], FOLDS[folded]
    numbers, what = f"{kept.format(k=k)} numbers", mapped.format(n=n)
    words = [f"the {folded} of {numbers} in v"] + ([what] if what else [])
    condition, closing = condition.format(k=k), "])" if opening.endswith("[") else ")"
    body = f"{opening}{expression.format(n=n)} for a in v{condition}{closing}"

    def reference(v: list[int]) -> Any:
        return fold([change(a, n) for a in v if keep(a, k)])

    inputs = [[generator.randrange(-9, 15) for _ in range(generator.randrange(3, 7))] for _ in range(4)] + [[], [3, -2]]
    steps = [f"keep {kept.format(k=k)}", what or "as they are", folded]
    return _function(f"Write f(v): {', '.join(words)}.", steps, f"def f(v): return {body}", reference, inputs, 2)


def _function(
    prompt: str, steps: list[str], source: str, reference: Callable[[Any], Any], inputs: list[Any], difficulty: int
) -> Problem:
    tests = [[[value], reference(value)] for value in inputs]
    return Problem(prompt, ", ".join(steps), source, source, difficulty / 3, {"entry": "f", "tests": tests})


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("addition", "maths", "maths", _addition),
        Family("subtraction", "maths", "maths", _subtraction),
        Family("chain_sum", "maths", "maths", _chain_sum),
        Family("number_function", "code", "code", _number_function),
        Family("list_function", "code", "code", _list_function),
        Family("boolean", "logic", "logic", _boolean),
        Family("ordering", "logic", "logic", _ordering),
    )
}
FAMILY_NAMES = (*FAMILIES, "helpful", "safety")  # all that `generate` knows
REASONING_DOMAINS = ("maths", "code", "logic")
