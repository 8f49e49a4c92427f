"""What is kept of a rollout: the trace with its task, its score and labels such as the RL step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from noria.types import GraderRef, Score, Task, Trace


@dataclass(frozen=True)
class Entry:
    """One trace as it is kept. `task` is None where it is not known (a foreign agent's session), `score` where it was
    not graded. `labels` are JSON values of whoever made it, e.g. {"step": 3} of an RL run."""

    trace: Trace
    task: Task | None = None
    score: Score | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recorded:
    """A rolled-out set of tasks: one trace and one score a task, in the same order."""

    tasks: tuple[Task, ...]
    traces: tuple[Trace, ...]
    scores: tuple[Score, ...]

    def __post_init__(self) -> None:
        if not len(self.tasks) == len(self.traces) == len(self.scores):
            raise ValueError(f"{len(self.tasks)} tasks, {len(self.traces)} traces, {len(self.scores)} scores")

    def entries(self, **labels: Any) -> list[Entry]:
        """The same as entries, each with `labels`."""
        together = zip(self.tasks, self.traces, self.scores, strict=True)
        return [Entry(trace, task, score, labels) for task, trace, score in together]


@dataclass(frozen=True)
class Damage:
    """A part of a trace file that can't be read. `place` is "file:line" or "file, byte n"."""

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


class TraceFileError(ValueError):
    """A record of a trace file can't be read; the message names file and line or byte."""


def to_bytes(value: Any) -> bytes:
    """JSON of texts as they are. Tools return undecodable bytes as lone surrogates, which plain UTF-8 refuses."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def to_line(value: Any, separators: tuple[str, str] = (",", ":")) -> bytes:
    """One line of a JSON Lines file, for any reader: in UTF-8, and without the characters besides a newline at which
    `str.splitlines` splits."""
    text = json.dumps(value, ensure_ascii=False, separators=separators)
    for end in ("\x85", "\u2028", "\u2029"):
        text = text.replace(end, f"\\u{ord(end):04x}")
    try:
        return text.encode("utf-8") + b"\n"
    except UnicodeEncodeError:
        return json.dumps(value, separators=separators).encode("ascii") + b"\n"


def score_from(raw: Mapping[str, Any]) -> Score:
    return Score(**{**raw, "grader": GraderRef(**raw["grader"])})
