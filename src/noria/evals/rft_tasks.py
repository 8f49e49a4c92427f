"""Tasks of reinforcement fine-tuning from a JSON Lines file: a prompt a line, and whatever the grader's templates read.

    {"prompt": "What is 2 + 2?", "answer": "4"}

`messages` may stand for `prompt`; `id` and `family` may be given; every other field is the grader's. `answer`, where it
is there, is the gold answer: the grader is tried on it before anything is computed. The split is a function of the id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from noria.evals.gym_tasks import split_of
from noria.evals.task_file import TaskFileError
from noria.grading.grader_language import look_up
from noria.types import GraderRef, Message, Role, Task, digest

LEAST_HELD_OUT = 8
SHOWN = 10  # problems of a file


def read_rft_tasks(path: Path, grader: GraderRef, required: Sequence[str]) -> list[Task]:
    """The tasks of the file, in order. Raises TaskFileError with file, line and field of all that is wrong."""
    return list(read_numbered(path, grader, required).values())


def read_numbered(path: Path, grader: GraderRef, required: Sequence[str]) -> dict[int, Task]:
    """The same by the number of the line, from 1."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskFileError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from error
    tasks: dict[int, Task] = {}
    problems: list[str] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            task = _task(json.loads(line), path.stem, grader, required)
            if task.id in seen:
                raise ValueError(f"it repeats line {seen[task.id]} (id {task.id!r})")
            seen[task.id] = number
            tasks[number] = task
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
    if not tasks and not problems:
        problems = [f'{path} holds no task; a line looks like {{"prompt": "...", "answer": "..."}}']
    refuse(problems)
    return tasks


def split(tasks: Sequence[Task], path: Path) -> tuple[list[Task], list[Task]]:
    """(training, held out): two tenths by id. Raises TaskFileError where either would be too small to mean anything."""
    train = [task for task in tasks if split_of(task.id) == "train"]
    held_out = [task for task in tasks if split_of(task.id) == "heldout"]
    if len(held_out) < LEAST_HELD_OUT or not train:
        raise TaskFileError(
            f"{path}: of {len(tasks)} tasks {len(held_out)} would be held out, and it takes {LEAST_HELD_OUT} at least "
            "to prove anything: give more tasks, or a file of their own with --heldout"
        )
    return train, held_out


def refuse_unfit(train: Sequence[Task], held_out: Sequence[Task], path: Path) -> None:
    """Raises TaskFileError where the held-out tasks of `path` are too few to prove anything, or are trained on."""
    if len(held_out) < LEAST_HELD_OUT:
        raise TaskFileError(
            f"{path}: {len(held_out)} held-out tasks, and it takes {LEAST_HELD_OUT} at least to prove anything: give "
            "more, or leave --heldout out: then a fifth of the tasks is held out"
        )
    trained = {task.messages for task in train}
    if both := [task for task in held_out if task.messages in trained]:
        raise TaskFileError(f"{path}: {len(both)} held-out prompts are trained on too, the first of task {both[0].id}")


def refuse(problems: Sequence[str]) -> None:
    """Raises TaskFileError with the first of the problems, if there are any."""
    if problems:
        more = f"\nand {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise TaskFileError("\n".join(problems[:SHOWN]) + more)


def _task(raw: Any, name: str, grader: GraderRef, required: Sequence[str]) -> Task:
    if not isinstance(raw, Mapping):
        raise ValueError(f"a task is a JSON object; found {type(raw).__name__}")
    messages = _prompt(raw)
    for field in required:
        try:
            look_up(field, raw)
        except KeyError:
            raise ValueError(f"no field {field}, which the grader's template {{{{item.{field}}}}} reads") from None
    identity = raw.get("id", digest("rft", *(f"{message.role}:{message.content}" for message in messages)))
    family = raw.get("family", name)
    if not isinstance(identity, str) or not isinstance(family, str):
        raise ValueError("id and family are text")
    answer = raw.get("answer", "")
    answer = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    return Task(identity, messages, grader, answer, family, "train", hidden={"item": dict(raw)})


def _prompt(raw: Mapping[str, Any]) -> tuple[Message, ...]:
    if ("prompt" in raw) == ("messages" in raw):
        raise ValueError("give either prompt (text) or messages (a list of role and content)")
    listed = [{"role": "user", "content": raw["prompt"]}] if "prompt" in raw else raw["messages"]
    if not isinstance(listed, list) or not listed:
        raise ValueError("messages is a list of at least one message")
    for message in listed:
        if not isinstance(message, Mapping) or message.get("role") not in get_args(Role):
            raise ValueError(f"a message has a role ({', '.join(get_args(Role))}) and content; found {message!r:.80}")
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            raise ValueError(f"a prompt is text that is not empty; found {message.get('content')!r:.80}")
    if listed[-1]["role"] == "assistant":
        raise ValueError("messages end with the assistant's own turn, so that there is nothing to answer: leave it out")
    return tuple(Message(message["role"], message["content"]) for message in listed)
