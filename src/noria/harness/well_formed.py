"""Whether an environment and its tasks have the shapes that a rollout needs: pure functions that say what is wrong.

An author's slip (a tool's name for the tool, a number for an answer) is told with its field before anything runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from noria.harness.budget import Budget
from noria.harness.program import Program
from noria.harness.subagents import SubAgents
from noria.harness.tools.toolbox import wrong_in_tools
from noria.types import GraderRef, Message, Task

if TYPE_CHECKING:
    from noria.harness.environments.environment import Environment

FIELDS: Mapping[str, tuple[type, ...]] = {
    "name": (str,),
    "about": (str,),
    "budget": (Budget,),
    "cheats": (Mapping,),
    "dials": (Mapping,),
    "program": (Program, type(None)),
    "subagents": (SubAgents, type(None)),
    "tasks_to_check": (int,),
}
MAY_BE_NONE = ("helper", "reference")
TEXTS = ("id", "answer", "family", "domain")  # of a task


class WrongTask(ValueError):
    """A task that can't be rolled out; the message names it, its field and what to give."""


def wrong_in_environment(environment: Environment) -> str:
    """What would otherwise fail far from the file; "" where nothing is wrong."""
    for name, kinds in FIELDS.items():
        value = getattr(environment, name)
        if not isinstance(value, kinds):
            extra = ": give load_program(NAME)" if name == "program" else ""
            return f"`{name}` must be {_kinds(kinds)}, not {_shown(value)}{extra}"
    if wrong := wrong_in_tools(environment.tools):
        return f"`tools`: {wrong}"
    for name in ("generate", "grader", "gold", "helper", "reference"):
        value = getattr(environment, name)
        if not callable(value) and not (value is None and name in MAY_BE_NONE):
            return f"`{name}` must be a function, not {_shown(value)}"
    if not environment.cheats:
        return "`cheats` is empty: name at least one way to look good without doing it"
    for name, cheat in environment.cheats.items():
        if not callable(cheat):
            return f"`cheats`: {name} must be a function of a task, not {_shown(cheat)}"
    if (environment.subagents is None) != (environment.helper is None):
        return "`subagents` and `helper` go together: give both or neither"
    if isinstance(environment.splits, str):
        return f"`splits` must be a tuple of names, not the text {environment.splits!r}"
    missing = [name for name in ("train", "heldout") if name not in environment.splits]
    return f"`splits` must have {missing[0]!r}" if missing else ""


def wrong_in_tasks(tasks: object) -> str:
    """What is wrong with what a generator gave; "" where nothing is."""
    if not isinstance(tasks, Sequence) or isinstance(tasks, str):
        return f"must return a list of tasks, not {_shown(tasks)}"
    found = (wrong for task in tasks if (wrong := wrong_in_task(task)))
    return next(found, "")


def wrong_in_task(task: object) -> str:
    """What is wrong with one task, with its id and the field; "" where nothing is."""
    if not isinstance(task, Task):
        return f"a task must be a Task, not {_shown(task)}"
    wrong = _wrong_in_fields(task) or _wrong_in_files(task.hidden.get("files", {}))
    return f"task {task.id!s:.40}: {wrong}" if wrong else ""


def _wrong_in_fields(task: Task) -> str:
    for name in TEXTS:
        value = getattr(task, name)
        if not isinstance(value, str):
            return f"`{name}` must be text, not {_shown(value)}: write str(...)"
    if isinstance(task.messages, str) or not isinstance(task.messages, Sequence) or not task.messages:
        return f"`messages` must be a tuple of at least one Message, not {_shown(task.messages)}"
    for message in task.messages:
        if not isinstance(message, Message) or not isinstance(message.content, str):
            return f"`messages` must hold Message(role, text), not {_shown(message)}"
    if not isinstance(task.difficulty, int | float):
        return f"`difficulty` must be a number from 0 to 1, not {_shown(task.difficulty)}"
    if not isinstance(task.grader, GraderRef):
        return f"`grader` must be a GraderRef, not {_shown(task.grader)}: write grader().ref"
    return "" if isinstance(task.hidden, Mapping) else f"`hidden` must be a dict, not {_shown(task.hidden)}"


def _wrong_in_files(files: Any) -> str:
    if not isinstance(files, Mapping):
        return f"`hidden['files']` must be a dict of path -> text, not {_shown(files)}"
    for path, text in files.items():
        if not isinstance(path, str):
            return f"`hidden['files']` has the path {path!r:.40}: a path must be text"
        if not isinstance(text, str):
            return f"`hidden['files'][{path!r}]` must be text, not {_shown(text)}: join lines, or write json.dumps(...)"
    return ""


def _kinds(kinds: tuple[type, ...]) -> str:
    return " or ".join("None" if kind is type(None) else f"of type {kind.__name__}" for kind in kinds)


def _shown(value: object) -> str:
    return f"{value!r:.60} ({type(value).__name__})"
