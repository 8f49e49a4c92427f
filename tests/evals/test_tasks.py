"""The task families: split apart, solvable as shown, and right by another computation than the generator's."""

from __future__ import annotations

import re
from itertools import permutations

import pytest

from noria.evals import tasks as tasks_module
from noria.evals.benchmarks import grade
from noria.evals.tasks import FAMILIES, FamilyExhausted, demonstrate, generate
from noria.posttraining.rejection import judge
from noria.posttraining.task_set import as_many_as_there_are
from noria.types import Message, Node, Score, Trace, task_from_json, task_to_json

SPLITS = ("pretraining", "train", "heldout")
COUNT = 40  # a split of a family has hundreds of problems


def answered(task, reply, outcome="finished"):
    return Trace(f"trace of {task.id}", task.id, (Node((), Message("assistant", reply)),), 0, "plain", outcome)


@pytest.fixture(scope="module")
def drawn():
    return {(family, split): generate(family, COUNT, 0, split) for family in FAMILIES for split in SPLITS}


@pytest.fixture(scope="module")
def everything(drawn):
    return [task for tasks in drawn.values() for task in tasks]


def prompt_of(task):
    (message,) = task.messages
    assert message.role == "user"
    return message.content


def test_splits_share_no_prompt_whatever_their_seeds(drawn):
    for family in FAMILIES:
        prompts = [{prompt_of(task) for task in drawn[family, split]} for split in SPLITS]
        prompts.append({prompt_of(task) for task in generate(family, COUNT, 1, "heldout")})
        assert all(len(found) == COUNT for found in prompts)
        assert not (prompts[0] & prompts[1] or prompts[0] & prompts[3] or prompts[1] & prompts[3])
        assert not (prompts[0] & prompts[2] or prompts[1] & prompts[2])


@pytest.mark.parametrize("family", [*FAMILIES, "helpful", "safety"])
def test_equal_arguments_give_equal_tasks(family):
    assert generate(family, 20, 3, "train") == generate(family, 20, 3, "train")
    assert generate(family, 20, 3, "train") != generate(family, 20, 4, "train")


def test_fewer_tasks_are_the_first_of_more(drawn):
    for family in FAMILIES:
        assert generate(family, 10, 0, "train") == drawn[family, "train"][:10]


def test_tasks_survive_json_and_no_prompt_shows_its_program(everything):
    for task in everything:
        assert task_from_json(task_to_json(task)) == task
        assert 0.0 <= task.difficulty <= 1.0 and task.domain in ("maths", "code", "logic")
        assert "def f(" not in prompt_of(task)


def test_maths_answers_are_what_python_computes(drawn):
    for family in ("addition", "subtraction", "chain_sum"):
        for task in drawn[family, "train"]:
            expression = re.fullmatch(r"What is ([\d+\- ]+)\?", prompt_of(task)).group(1)
            assert int(task.answer) == eval(expression)


def test_every_step_of_worked_arithmetic_is_true(drawn):
    for family in ("addition", "subtraction", "chain_sum"):
        for task in drawn[family, "train"]:
            for step in task.hidden["thinking"].split(", "):
                left, right = step.split("=")
                assert eval(re.sub(r"\b0+(?=\d)", "", left)) == int(right), step


def test_column_digits_read_backwards_are_the_answer(drawn):
    for family in ("addition", "subtraction"):
        for task in drawn[family, "train"]:
            columns = [step.split("=")[1] for step in task.hidden["thinking"].split(", ")]
            digits = columns[-1] + "".join(column[-1] for column in reversed(columns[:-1]))
            assert int(digits) == int(task.answer)


def test_boolean_answers_are_a_fold_from_the_left(drawn):
    """Not Python's own reading of the whole line, where `and` binds tighter."""
    differs = 0
    for split in SPLITS:
        for task in drawn["boolean", split]:
            text = re.fullmatch(r"From left to right, what is (.*)\?", prompt_of(task)).group(1)
            parts = re.split(r" (and|or) ", text.replace("true", "True").replace("false", "False"))
            value = str(eval(parts[0]))
            for operator, literal in zip(parts[1::2], parts[2::2], strict=True):
                value = str(eval(f"({value}) {operator} ({literal})"))
            assert task.answer == value.lower()
            differs += value != str(eval(" ".join(parts)))
    assert differs > 0


def test_exactly_one_order_fits_and_its_end_is_the_answer(drawn):
    ends = {"tallest": 0, "oldest": 0, "fastest": 0, "shortest": -1, "youngest": -1, "slowest": -1}
    for task in drawn["ordering", "train"]:
        prompt = prompt_of(task)
        facts = re.findall(r"(\w+) is \w+ than (\w+)\.", prompt)
        people = sorted({name for fact in facts for name in fact})
        fitting = [p for p in permutations(people) if all(p.index(a) < p.index(b) for a, b in facts)]
        asked = re.search(r"Who is (\w+)\?", prompt).group(1)
        assert len(fitting) == 1 and task.answer == fitting[0][ends[asked]]


def test_code_demonstrations_pass_their_hidden_tests(drawn):
    for family in ("number_function", "list_function"):
        for split in SPLITS:
            for task in drawn[family, split]:
                scope: dict = {}
                exec(task.hidden["solution"], scope)
                assert len(task.hidden["tests"]) >= 5
                for arguments, expected in task.hidden["tests"]:
                    assert scope[task.hidden["entry"]](*arguments) == expected, prompt_of(task)


def test_number_functions_do_what_their_words_say(drawn):
    """A second reader of the prompt, that shares nothing with the generator."""
    for task in drawn["number_function", "train"]:
        steps = re.fullmatch(r"Write f\(x\): (.*)\.", prompt_of(task)).group(1).split(", then ")
        for (x,), expected in task.hidden["tests"]:
            for step in steps:
                word, *_, last = step.split()
                n = int(last) if last.isdigit() else 0
                x = {"add": x + n, "subtract": x - n, "multiply": x * n, "square": x * x, "negate": -x}[word]
            assert x == expected


def test_hidden_tests_tell_most_functions_from_the_identity(drawn):
    for family in ("number_function", "list_function"):
        told = [any(a[0] != expected for a, expected in t.hidden["tests"]) for t in drawn[family, "train"]]
        assert sum(told) > 0.95 * len(told)


@pytest.mark.slow
def test_the_real_graders_give_every_demonstration_full_marks(everything):
    tasks = [*everything, *generate("helpful", 40, 0, "train"), *generate("safety", 40, 0, "train")]
    scores = grade(tasks, [answered(task, demonstrate(task)) for task in tasks])
    assert [(task.id, score.evidence) for task, score in zip(tasks, scores, strict=True) if score.value != 1.0] == []


def test_the_graders_of_text_give_demonstrations_full_marks_and_other_answers_none(everything):
    tasks = [task for task in everything if task.domain in ("maths", "logic")][::5]
    scores = grade(tasks, [answered(task, demonstrate(task)) for task in tasks])
    assert {score.value for score in scores} == {1.0}
    wrong = {"true": "false", "false": "true"}
    replies = [wrong.get(t.answer, "Zoe" if t.domain == "logic" else str(int(t.answer) + 1)) for t in tasks]
    assert {score.value for score in grade(tasks, [answered(*pair) for pair in zip(tasks, replies, strict=True)])} == {
        0.0
    }


def test_rejection_sampling_keeps_every_demonstration(everything):
    """A worked solution repeats itself where the problem does (true or true is true, ...): no filter may mind."""
    for task in [*everything, *generate("boolean", 300, 5, "train"), *generate("safety", 40, 0, "train")]:
        trace = answered(task, demonstrate(task))
        assert judge(trace, Score("graded", task.grader, 1.0)) == "kept", demonstrate(task)


def test_a_family_that_has_too_few_problems_says_how_many_it_has(monkeypatch):
    monkeypatch.setattr(tasks_module, "EXHAUSTED_AFTER", 40)  # gives up sooner
    with pytest.raises(FamilyExhausted, match=r"'list_function' gave \d+ distinct train tasks") as exhausted:
        generate("list_function", 10**6, 0, "train")
    found = exhausted.value.found
    assert len(as_many_as_there_are("list_function", found + 10, 0)) == found
    with pytest.raises(FamilyExhausted):
        as_many_as_there_are("list_function", 2 * found + 2, 0)
