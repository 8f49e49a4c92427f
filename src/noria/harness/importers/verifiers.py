"""verifiers tasksets (0.4) and environments (0.1) as tasks of ours: their prompts, and their rewards as a grader.

They stay in an environment of their own, where a worker runs them (`verifiers_worker.py`): `python -m venv peer &&
peer/bin/pip install verifiers NAME`, then name peer/bin/python. What needs more than one reply to a prompt (tools, a
container, an Env of its own, a judge model) is refused with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noria.harness.environments.environment import follow
from noria.harness.importers.peer_tasks import TIMEOUT_SECONDS, PeerTasks
from noria.harness.scripted import Policy
from noria.types import Task

WORKER = Path(__file__).with_name("verifiers_worker.py")


def verifiers_tasks(
    name: str,
    python: str,
    *,
    arguments: Mapping[str, Any] | None = None,
    limit: int = 1000,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> PeerTasks:
    """The first `limit` tasks of the taskset or environment `name`: `with verifiers_tasks(...) as imported:`.

    `name` is that of an installed package, or the path of a package of one's own. `python` is the interpreter of its
    environment. The score is its weighted reward, each reward a component too. Raises ImportRefused where verifiers is
    not there or nothing can be imported.
    """
    settings = {"id": name, "arguments": dict(arguments or {})}
    return PeerTasks("verifiers", name, python, "verifiers", WORKER, settings, gold, limit, timeout_seconds)


def gold(task: Task) -> Policy | None:
    """The task's `answer` as the reply, where it has one: right where the reward compares with it."""
    return follow([task.answer]) if task.answer else None
