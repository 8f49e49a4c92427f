"""`search`: follow two to four hops through a corpus, in a context so small that what is of no use must be pruned.

Documents have ids that tell nothing; each says one thing (`the successor of apple is pear`), decoys the like. The
answer is a number at the end of the chain. The columns hold what Context-1's reward is made of (targets seen, targets
kept, its clamped sum); the value is the right answer less the costs of pruning streaks and turns, so that piling up
documents without answering pays nothing.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from noria.harness.environments.environment import Environment, belongs, call, distinct
from noria.harness.environments.lookup import WORDS
from noria.harness.program import program_from_source
from noria.harness.reward import (
    Parts,
    called_tools,
    context_reward,
    count,
    f_beta,
    prune_cost,
    trajectory_recall,
    turn_cost,
)
from noria.harness.rollout import Budget
from noria.harness.scripted import Policy
from noria.harness.tools.search import search_tools
from noria.harness.trace_grader import TraceGrader, answer_evidence, right_answer, trace_grader
from noria.types import Message, Task, Trace, digest

FAMILY, DOMAIN = "agent_search", "agent"
HOPS = (2, 3, 4)
RELATIONS = ("rival", "cousin", "guest")  # of decoys
DECOYS = 8  # besides the number and the successor that every word has
SHOWN, ROOM_TOKENS = 3, 60  # chunks a search gives; a chunk has about 8 tokens, so two or three searches fit
BETA = 2.0  # of the logged F: where Context-1's annealing ends
HEADER = re.compile(r"^\[(\S+)\] (.+)$", re.MULTILINE)
SUCCESSOR, NUMBER = re.compile(r"the successor of (\w+) is (\w+)"), re.compile(r"the number of (\w+) is (\d+)")

PROGRAM = program_from_source(
    '''"""The whole history, but of a pruned chunk only its id."""

import re

from noria.types import Message

CHUNK = re.compile(r"^\\[(\\S+)\\] .*$", re.MULTILINE)


class Harness:
    def view(self, state):
        pruned = state.notes.get("search", {}).get("pruned", ())
        return tuple(self.shown(message, pruned) for message in state.messages)

    def shown(self, message, pruned):
        def short(chunk):
            return f"[{chunk[1]}] (pruned)" if chunk[1] in pruned else chunk[0]

        text = CHUNK.sub(short, message.content) if message.role == "tool" else message.content
        return message if text == message.content else Message("tool", text)

    def tools(self, state):
        return ("search_corpus", "grep_corpus", "read_document", "prune_chunks")

    def observe(self, state, action, result):
        return (Message("tool", result),)
''',
    "without_pruned",
)


def generate(count: int, seed: int, split: str) -> list[Task]:
    ref = grader().ref

    def draw(generator: random.Random, split: str) -> Task | None:
        hops = generator.choice(HOPS)
        chain = generator.sample(WORDS, hops)
        if not belongs(split, FAMILY, *chain):
            return None
        number = dict(zip(WORDS, generator.sample(range(10, 100), len(WORDS)), strict=True))
        others = [word for word in WORDS if word not in chain]
        generator.shuffle(others)
        facts = [f"the successor of {a} is {b}" for a, b in pairwise(chain)]
        facts.append(f"the number of {chain[-1]} is {number[chain[-1]]}")
        decoys = [f"the number of {word} is {number[word]}" for word in WORDS if word != chain[-1]]
        # As the chain's words have: where others occur less often, a search for any number ranks the right one first.
        decoys += [f"the successor of {a} is {b}" for a, b in pairwise([chain[-1], *others, chain[0]])]
        pairs = (generator.sample(WORDS, 2) for _ in range(DECOYS))
        decoys += [f"the {generator.choice(RELATIONS)} of {a} is {b}" for a, b in pairs]
        names = [f"d{number}" for number in generator.sample(range(100, 1000), len(facts) + len(decoys))]
        files = {f"corpus/{name}": text for name, text in zip(names, [*facts, *decoys], strict=True)}
        return Task(
            id=digest(FAMILY, *(f"{path}={text}" for path, text in sorted(files.items()))),
            messages=(Message("user", f"number of {'successor of ' * (hops - 1)}{chain[0]}"),),
            grader=ref,
            answer=str(number[chain[-1]]),
            family=FAMILY,
            domain=DOMAIN,
            difficulty=(hops - min(HOPS)) / (max(HOPS) - min(HOPS)),
            hidden={"files": dict(sorted(files.items())), "targets": [f"{name}#0" for name in names[:hops]]},
        )

    return distinct(draw, FAMILY, count, seed, split)


def gold(task: Task) -> Policy:
    """Searches for the next link, prunes what the search brought besides, and answers when the number is seen.

    That a chunk will be needed later it knows from the task; all else it reads off what it sees.
    """

    def policy(messages: Sequence[Message], seed: int) -> str:
        seen: dict[str, str] = {}
        for message in messages:
            if message.role == "tool":
                seen |= {name: text for name, text in HEADER.findall(message.content) if text != "(pruned)"}
        words = messages[0].content.split()
        place, left = words[-1], len(words) // 2 - 1
        of = {match[1]: match[2] for text in seen.values() if (match := SUCCESSOR.fullmatch(text))}
        while left and place in of:
            place = of[place]
            left -= 1
        numbers = {match[1]: match[2] for text in seen.values() if (match := NUMBER.fullmatch(text))}
        if idle := sorted(name for name in seen if name not in task.hidden["targets"]):
            return call("prune_chunks", *idle)
        if not left and place in numbers:
            return numbers[place]
        return call("search_corpus", f"{'successor' if left else 'number'} of {place}")

    return policy


def grader() -> TraceGrader:
    return trace_grader(FAMILY, _judge, sys.modules[__name__])


def _judge(task: Task, trace: Trace) -> Parts:
    seen, pruned = (_ids(trace.notes.get("search"), name) for name in ("seen", "pruned"))
    targets, outcome = task.hidden["targets"], right_answer(task, trace)
    pruning, turns = prune_cost(called_tools(trace)), turn_cost(count(trace, "turns"))
    kept, seen_share = f_beta(seen - pruned, targets, BETA), trajectory_recall(seen, targets)
    return Parts(
        outcome=outcome,
        process={"turn_cost": 0.0 - turns},
        context={"prune_cost": 0.0 - pruning},
        facts={
            "kept_f": kept,
            "seen_recall": seen_share,
            "pruned": float(len(pruned)),
            "context_reward": context_reward(kept, seen_share, outcome, pruning, turns),
        },
        evidence=answer_evidence(task, trace),
    )


def _ids(notes: Any, name: str) -> set[str]:
    listed = notes.get(name) if isinstance(notes, Mapping) else None
    return {item for item in listed if isinstance(item, str)} if isinstance(listed, list | tuple) else set()


def _first_number(messages: Sequence[Message], seed: int) -> str:
    """Searches for the last relation of the question and takes the first number that comes."""
    numbers = [match[2] for message in messages[1:] for match in NUMBER.finditer(message.content)]
    return numbers[0] if numbers else call("search_corpus", "the number of is") if len(messages) < 3 else "50"


def _gathering(messages: Sequence[Message], seed: int) -> str:
    """Piles up documents and answers nothing."""
    return call("search_corpus", " ".join(WORDS[len(messages) :][:5])) if len(messages) < 8 else "all found"


ENVIRONMENT = Environment(
    name="search",
    about="follow 2 to 4 hops through a corpus in a context that must be pruned",
    generate=generate,
    tools=search_tools("corpus", count=SHOWN, budget_tokens=ROOM_TOKENS),
    grader=grader,
    budget=Budget(turns=16, tokens_per_turn=48, context=1024),
    gold=gold,
    cheats={
        "guess": lambda task: lambda messages, seed: str(random.Random(seed).randrange(10, 100)),
        "first_number_seen": lambda task: _first_number,
        "gather_and_say_nothing": lambda task: _gathering,
        "grep_all_numbers": lambda task: (
            lambda messages, seed: (
                call("grep_corpus", "number")
                if len(messages) == 1
                else " ".join(re.findall(r"is (\d+)", messages[-1].content))
            )
        ),
        "search_for_ever": lambda task: lambda messages, seed: call("search_corpus", messages[0].content),
        "prune_for_ever": lambda task: lambda messages, seed: call("prune_chunks", "d1#0"),
    },
    dials={
        "hops": "2 to 4",
        "decoys": f"a number and a successor of every word, and {DECOYS} other relations",
        "room": f"{ROOM_TOKENS} tokens of chunks",
    },
    program=PROGRAM,
)
