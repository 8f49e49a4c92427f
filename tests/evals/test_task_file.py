from __future__ import annotations

from pathlib import Path

import pytest

from noria.evals.task_file import TaskFileError, read_tasks
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
