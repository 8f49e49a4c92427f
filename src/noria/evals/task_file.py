"""Tasks from a JSON Lines file: a user's own benchmark or prompts, one task a line.

    {"prompt": "What is 2 + 2?", "answer": "4", "grader": "maths"}

`messages` may stand for `prompt`, and `id`, `family`, `domain`, `difficulty` and `hidden` may be given; a line that
`task_to_json` wrote is read as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from noria.grading import GRADERS, grader_ref
from noria.types import GraderRef, Message, Role, Task, digest

FIELDS = ("prompt", "messages", "answer", "grader", "id", "family", "domain", "difficulty", "hidden")


class TaskFileError(ValueError):
    """A file of tasks that can't be used; the message has a line for each problem, with file and line number."""


def read_tasks(path: Path) -> list[Task]:
    """Every task of the file, in order. Raises TaskFileError with all that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskFileError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from error
    tasks: dict[str, Task] = {}
    problems = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            task = _task(json.loads(line), path.stem)
            if task.id in tasks:
                raise ValueError(f"the id {task.id!r} is that of an earlier line")
            tasks[task.id] = task
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
    if not tasks and not problems:
        problems.append(
            f'{path} holds no task; a line looks like {{"prompt": "...", "answer": "...", "grader": "maths"}}'
        )
    if problems:
        more = f"\nand {len(problems) - 10} more" if len(problems) > 10 else ""
        raise TaskFileError("\n".join(problems[:10]) + more)
    return list(tasks.values())


def _task(raw: Any, name: str) -> Task:
    if not isinstance(raw, Mapping):
        raise ValueError(f"a task is a JSON object; found {type(raw).__name__}")
    if unknown := sorted(set(raw) - set(FIELDS)):
        raise ValueError(f"unknown field {', '.join(unknown)}; allowed: {', '.join(FIELDS)}")
    if ("prompt" in raw) == ("messages" in raw):
        raise ValueError("give either prompt (text) or messages (a list of role and content)")
    messages = (Message("user", _text(raw, "prompt")),) if "prompt" in raw else _messages(raw["messages"])
    answer = _text(raw, "answer")
    difficulty, hidden = raw.get("difficulty", 0.0), raw.get("hidden", {})
    if isinstance(difficulty, bool) or not isinstance(difficulty, int | float) or not 0 <= difficulty <= 1:
        raise ValueError(f"difficulty is a number from 0 to 1; found {difficulty!r}")
    if not isinstance(hidden, Mapping):
        raise ValueError(f"hidden is a JSON object; found {hidden!r}")
    grader = _grader(raw.get("grader"))
    identity = digest(name, *(f"{message.role}:{message.content}" for message in messages), answer)
    return Task(
        id=_text(raw, "id") if "id" in raw else identity,
        messages=messages,
        grader=grader,
        answer=answer,
        family=_text(raw, "family") if "family" in raw else name,
        domain=_text(raw, "domain") if "domain" in raw else grader.name,
        difficulty=float(difficulty),
        hidden=dict(hidden),
    )


def _messages(raw: Any) -> tuple[Message, ...]:
    if not isinstance(raw, list) or not raw:
        raise ValueError("messages is a list of at least one message")
    found = []
    for message in raw:
        if not isinstance(message, Mapping) or message.get("role") not in get_args(Role):
            raise ValueError(f"a message has a role ({', '.join(get_args(Role))}) and content; found {message!r}")
        found.append(Message(message["role"], _text(message, "content")))
    return tuple(found)


def _grader(raw: Any) -> GraderRef:
    """A grader by its name; the version is that of the installed one, whatever the line says."""
    name = raw.get("name") if isinstance(raw, Mapping) else raw
    if name not in GRADERS:
        raise ValueError(f"grader is one of {', '.join(sorted(GRADERS))}; found {name!r}")
    return grader_ref(name)


def _text(raw: Mapping[str, Any], name: str) -> str:
    value = raw.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is text; found {json.dumps(value)}")
    return value
