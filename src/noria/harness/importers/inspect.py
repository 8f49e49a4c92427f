"""Inspect tasks as tasks of ours: the prompt that its solver shows the model, and its scorers as a grader.

The task stays in Inspect's own environment, where a worker runs it (`inspect_worker.py`): `python -m venv peer &&
peer/bin/pip install inspect-ai inspect-evals`, then name peer/bin/python. What needs more than one reply to a prompt
(tools, a sandbox, several model calls, images) is refused with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noria.harness.environments.environment import follow
from noria.harness.importers.peer_tasks import TIMEOUT_SECONDS, PeerTasks
from noria.harness.scripted import Policy
from noria.types import Task

WORKER = Path(__file__).with_name("inspect_worker.py")


def inspect_tasks(
    task: str,
    python: str,
    *,
    arguments: Mapping[str, Any] | None = None,
    limit: int = 1000,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> PeerTasks:
    """The first `limit` samples of the Inspect task `task`: FILE.py@NAME, or PACKAGE/NAME such as inspect_evals/NAME.

    `with inspect_tasks(...) as imported:`. `python` is the interpreter of Inspect's environment. The score is the mean
    of its scorers' values, each a component too. Raises ImportRefused where it has no Inspect or the task can't be
    imported at all.
    """
    settings = {"task": task, "arguments": dict(arguments or {})}
    return PeerTasks("inspect", task, python, "inspect-ai", WORKER, settings, gold, limit, timeout_seconds)


def gold(task: Task) -> Policy | None:
    """The target as the reply, with the form of a multiple choice where it is one: right for scorers that compare."""
    return follow([f"ANSWER: {task.answer}" if task.hidden["choices"] else task.answer]) if task.answer else None
