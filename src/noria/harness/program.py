"""A harness program: one editable Python file that decides what a model sees, what it may call and what it is told.

The file defines a class `Harness` with three methods; `programs/plain.py` is the shortest. A program sees messages and
counts, never a task's answer or hidden fields. What it raises ends the trace with the outcome `harness_error`.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

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


@dataclass(frozen=True)
class State:
    """Where a trace stands: its messages so far, the task's own first, and what is left of its budget.

    `files` is the workspace (path -> text); `notes` is what tools remember, e.g. which chunks were pruned.
    """

    messages: tuple[Message, ...]
    turn: int
    turns_left: int
    tokens_left: int
    tool_calls: int = 0
    invalid_calls: int = 0
    files: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


class Harness(Protocol):
    def view(self, state: State) -> Sequence[Message]:
        """The messages that the model sees next. Pass on objects of `state.messages` to keep their exact tokens."""
        ...

    def tools(self, state: State) -> Sequence[str]:
        """Names of the tools that may be called next. A call of any other counts as invalid."""
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

    @property
    def label(self) -> str:
        return f"{self.name}@{self.version[:12]}"


class ProgramError(ValueError):
    """The file is no harness program; the message names the file, the line where there is one, and what is wrong."""


def load_program(program: Path | str) -> Program:
    """A program from a file, or one that comes with noria by its name ("plain", "files"). Raises ProgramError.

    The file's code runs in this process: it is your own code, not a model's. Programs that something else wrote belong
    into a sandbox of their own.
    """
    path = Path(program)
    if not path.suffix:
        path = PROGRAMS / f"{program}.py"
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(file.stem for file in PROGRAMS.glob("*.py") if file.stem != "__init__"))
        raise ProgramError(f"{path}: {error}. Programs that come with noria: {known}") from error
    return program_from_source(source, path.stem, str(path))


def program_from_source(source: str, name: str, filename: str = "program.py") -> Program:
    """As `load_program`, from text."""
    names: dict[str, object] = {"__name__": f"noria_harness_{name}"}
    try:
        exec(compile(source, filename, "exec"), names)
        made = names["Harness"]() if callable(names.get("Harness")) else None  # type: ignore[operator]
    except Exception as error:  # a user's file may raise anything; it is told where
        line = next((frame.lineno for frame in reversed(traceback.extract_tb(error.__traceback__))), None)
        line = getattr(error, "lineno", None) or line
        raise ProgramError(f"{filename}:{line}: {type(error).__name__}: {error}") from error
    if made is None:
        raise ProgramError(f"{filename}: defines no class Harness with the methods view, tools and observe")
    missing = [method for method in ("view", "tools", "observe") if not callable(getattr(made, method, None))]
    if missing:
        raise ProgramError(f"{filename}: class Harness has no method {', '.join(missing)}")
    return Program(name, digest(source), made, source)
