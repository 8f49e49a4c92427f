"""A harness program: one editable Python file that decides what a model sees, what it may call and what it is told.

The file defines a class `Harness` with three methods; `programs/plain.py` is the shortest. A program sees messages and
counts, never a task's answer or hidden fields. What it raises ends the trace with the outcome `harness_error`.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from noria.harness.code_file import CodeFileError, error_line, read_code
from noria.harness.guard import refusal
from noria.types import Message, digest

PROGRAMS = Path(__file__).with_name("programs")


@dataclass(frozen=True)
class Action:
    """What the model did: an answer, or one call of a tool. A reply may hold several calls; each is an action.

    `argument` is plain text after the tool's name, or a chat model's JSON object.
    """

    kind: Literal["answer", "call"]
    content: str  # of the whole reply
    tool: str = ""
    argument: str | Mapping[str, Any] = ""
    malformed: str = ""  # why the call can't even be read


@dataclass(frozen=True)
class State:
    """Where a trace stands: its messages so far, the task's own first, and what is left of its budget.

    `files` is the workspace (path -> text); `notes` is what tools remember, e.g. which chunks were pruned. `shown` is
    the view of the last turn, empty before the first; `context_used` counts the tokens of that view and the reply to
    it, of the `context_limit` that they may fill. `available` names all tools that there are.
    """

    messages: tuple[Message, ...]
    turn: int
    turns_left: int
    tokens_left: int
    tool_calls: int = 0
    invalid_calls: int = 0
    files: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    shown: tuple[Message, ...] = ()
    context_used: int = 0
    context_limit: int = 1 << 20
    available: tuple[str, ...] = ()


class Harness(Protocol):
    """Three methods, and a fourth where a reply without a call need not be the end:

    `answered(state, action)` gives the messages with which the trace then goes on; none means that it was the answer.
    """

    def view(self, state: State) -> Sequence[Message]:
        """The messages that the model sees next. Pass on objects of `state.messages` to keep their exact tokens."""
        ...

    def tools(self, state: State) -> Sequence[str]:
        """Names of the tools that the next reply may call. A call of any other counts as invalid."""
        ...

    def observe(self, state: State, action: Action, result: str) -> Sequence[Message]:
        """The messages that a call's result adds to the history; usually one of role "tool". Once for each call."""
        ...


@dataclass(frozen=True)
class Program:
    """A loaded harness program. `version` is the digest of its source."""

    name: str
    version: str
    harness: Harness
    source: str = ""
    bootstrap: bool = False  # see bootstrap.py

    @property
    def label(self) -> str:
        return f"{self.name}@{self.version[:12]}"


class ProgramError(CodeFileError):
    """The file is no harness program."""


def program_names() -> list[str]:
    """The programs that come with noria, sorted."""
    return sorted(path.stem for path in PROGRAMS.glob("*.py") if path.stem != "__init__")


def load_program(program: Path | str) -> Program:
    """A program from a file, or one that comes with noria by its name ("plain", "files"). Raises ProgramError.

    The file's code runs in this process: it is your own code, not a model's. It may import `guard.IMPORTS`, and a
    method that runs without end is stopped; programs that something else wrote belong into a sandbox of their own all
    the same.
    """
    path, source = read_code(program, "harness program", PROGRAMS, program_names(), ProgramError)
    return program_from_source(source, path.stem, str(path))


def program_from_source(source: str, name: str, filename: str = "program.py") -> Program:
    """As `load_program`, from text."""
    names: dict[str, object] = {"__name__": f"noria_harness_{name}"}
    try:
        tree = ast.parse(source, filename)
        if wrong := refusal(tree):
            raise ProgramError(f"{filename}:{wrong[0]}: {wrong[1]}")
        exec(compile(tree, filename, "exec"), names)
        made = names["Harness"]() if callable(names.get("Harness")) else None  # type: ignore[operator]
    except ProgramError:
        raise
    except Exception as error:  # a user's file may raise anything; it is told where
        raise ProgramError(f"{filename}:{error_line(error, filename) or 1}: {type(error).__name__}: {error}") from error
    if made is None:
        raise ProgramError(f"{filename}: defines no class Harness with the methods view, tools and observe")
    missing = [method for method in ("view", "tools", "observe") if not callable(getattr(made, method, None))]
    if missing:
        raise ProgramError(f"{filename}: class Harness has no method {', '.join(missing)}")
    return Program(name, digest(source), made, source)
