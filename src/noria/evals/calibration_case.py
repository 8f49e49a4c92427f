"""A known answer: a task, a trace that answers it, and whether that answer is good."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from noria.types import GraderRef, Message, Node, Task, Trace, digest


@dataclass(frozen=True)
class Case:
    """`trick` names how the reply was made: what it may fool, or what form of a right answer it is."""

    task: Task
    trace: Trace
    good: bool
    trick: str


def case(
    domain: str,
    prompt: str,
    answer: str,
    reply: str,
    good: bool,
    trick: str,
    hidden: Mapping[str, Any] | None = None,
) -> Case:
    """A case with a single-turn trace whose one reply is `reply`."""
    user = Message("user", prompt)
    task = Task(
        digest(domain, prompt), (user,), GraderRef(domain, ""), answer, "calibration", domain, 0.0, hidden or {}
    )
    nodes = (Node((), user), Node((0,), Message("assistant", reply)))
    return Case(task, Trace(digest(prompt, reply), task.id, nodes, 0, "known answers", "finished"), good, trick)
