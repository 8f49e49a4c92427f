from __future__ import annotations

import json
from pathlib import Path

import pytest

from noria.evals.task_file import TaskFileError, read_tasks
from noria.evals.tasks import FAMILY_NAMES, generate
from noria.grading import grader_ref
from noria.types import Message, task_to_json


def write(folder: Path, *lines: str) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_prompt_an_answer_and_a_grader_make_a_task(tmp_path: Path):
    (task,) = read_tasks(write(tmp_path, '{"prompt": "2 + 2?", "answer": "4", "grader": "maths"}', ""))
    assert task.messages == (Message("user", "2 + 2?"),) and task.answer == "4"
    assert task.grader == grader_ref("maths") and (task.family, task.domain) == ("mine", "maths")


def test_a_task_that_noria_wrote_is_read_as_it_was(tmp_path: Path):
    line = '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "answer": "true", '
    (task,) = read_tasks(write(tmp_path, line + '"grader": "logic", "hidden": {"a": 1}, "difficulty": 1}'))
    assert read_tasks(write(tmp_path, task_to_json(task))) == [task]


def test_every_wrong_line_is_named_with_its_number(tmp_path: Path):
    path = write(
        tmp_path,
        "{",
        "[1]",
        '{"prompt": "p", "answer": "a", "grader": "mathz"}',
        '{"prompt": "p", "answer": 4, "grader": "maths"}',
        '{"prompt": "p", "answr": "a", "grader": "maths"}',
        '{"answer": "a", "grader": "maths"}',
        '{"messages": [{"role": "god", "content": "c"}], "answer": "a", "grader": "maths"}',
        '{"prompt": "p", "answer": "a", "grader": "maths", "difficulty": 2}',
    )
    with pytest.raises(TaskFileError) as caught:
        read_tasks(path)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{path}:{number}" for number in range(1, 9)]
    assert "found 'mathz'" in lines[2] and "unknown field answr" in lines[4]


def test_all_that_is_wrong_with_a_line_is_said_at_once(tmp_path: Path):
    with pytest.raises(TaskFileError) as caught:
        read_tasks(write(tmp_path, '{"prompt": " ", "answer": 4, "grader": "mathz", "difficulty": 2}'))
    (line,) = str(caught.value).splitlines()
    for said in ("prompt is empty", "answer is text", "found 'mathz'", "difficulty is a number"):
        assert said in line


@pytest.mark.parametrize(
    ("grader", "answer", "hidden", "said"),
    [
        ("maths", "four", {}, "the word 'four'"),
        ("maths", "42 or 43", {}, "the word 'or'"),
        ("maths", " ", {}, "has no gold answer"),
        ("maths_weak", "1/2", {}, "maths_weak judges integers"),
        ("logic", "...", {}, "has no gold answer"),
        ("logic", "Yes, because it rains", {}, "does not accept the answer"),
        ("code", "", {}, "hidden needs entry"),
        ("code", "", {"entry": "f", "tests": []}, "has no tests"),
        ("helpful", "Drink water.", {}, "no must_include"),
        ("safety", "", {"kind": "rude"}, "hidden kind is 'rude'"),
    ],
)
def test_a_task_that_no_reply_could_pass_is_refused_with_the_reason(
    tmp_path: Path, grader: str, answer: str, hidden: dict, said: str
):
    good = {"prompt": "2 + 2?", "answer": "4", "grader": "maths"}
    bad = {"prompt": "p", "answer": answer, "grader": grader, "hidden": hidden}
    with pytest.raises(TaskFileError) as caught:
        read_tasks(write(tmp_path, json.dumps(good), json.dumps(bad)))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{tmp_path / 'mine.jsonl'}:2: ") and said in line


@pytest.mark.parametrize(
    ("grader", "answer"),
    [("maths", one) for one in ("42 apples", "-1,234.5", r"\frac{1}{2}", "x^2 + 1", r"2\pi", "sin(x)", "[1, 2)")]
    + [("logic", one) for one in ("true", "Ann", "New York")],
)
def test_answers_that_a_grader_reads_are_accepted(tmp_path: Path, grader: str, answer: str):
    (task,) = read_tasks(write(tmp_path, json.dumps({"prompt": "p", "answer": answer, "grader": grader})))
    assert task.answer == answer


def test_a_reference_program_must_pass_its_own_tests(tmp_path: Path):
    line = {"prompt": "Add 2.", "grader": "code", "hidden": {"entry": "f", "tests": [[[1], 3]]}}
    right, wrong = ({**line, "answer": f"def f(x): return x + {n}"} for n in (2, 3))
    assert len(read_tasks(write(tmp_path, json.dumps(right)))) == 1
    with pytest.raises(TaskFileError, match="0 of 1 tests passed"):
        read_tasks(write(tmp_path, json.dumps(wrong)))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_our_own_tasks_are_accepted_by_their_graders(tmp_path: Path, family: str):
    tasks = generate(family, 6, 0, "heldout")
    assert read_tasks(write(tmp_path, *map(task_to_json, tasks))) == tasks


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file_shows_what_a_task_looks_like(tmp_path: Path, text: str):
    with pytest.raises(TaskFileError, match='"prompt"'):
        read_tasks(write(tmp_path, text))


def test_a_repeated_task_is_refused_and_a_missing_file_said(tmp_path: Path):
    line = '{"prompt": "2 + 2?", "answer": "4", "grader": "maths"}'
    with pytest.raises(TaskFileError, match=":2: the id"):
        read_tasks(write(tmp_path, line, line))
    with pytest.raises(TaskFileError, match="No such file"):
        read_tasks(tmp_path / "none.jsonl")
