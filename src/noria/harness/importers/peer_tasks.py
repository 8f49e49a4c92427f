"""What the importers of Inspect and verifiers share: tasks that a worker lists, and a grader that asks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from noria.grading import Failure, TextGrader, Verdict
from noria.harness.importers.imported import Imported
from noria.harness.importers.peer import Peer, PeerFailed
from noria.harness.scripted import Policy
from noria.types import GraderRef, Message, Task, digest

DOMAIN = "imported"
TIMEOUT_SECONDS = 300.0  # of one answer; data sets are read by the first


class PeerTasks:
    """Tasks of one reply to a prompt, held by a worker; a context manager, since grading asks the worker.

    The final answer is graded, without its thinking. Raises ImportRefused.
    """

    def __init__(
        self,
        family: str,
        name: str,
        python: str,
        package: str,
        worker: Path,
        settings: Mapping[str, Any],
        gold: Callable[[Task], Policy | None],
        limit: int,
        timeout_seconds: float,
    ) -> None:
        self._peer = Peer(python, worker, package, settings, timeout_seconds)
        try:
            told = self._peer.ask(op="tasks", limit=limit)
        except BaseException:
            self._peer.close()
            raise
        # The task's own sources are not ours to hash: its name, settings and the package's release stand for them.
        version = digest(repr(sorted(settings.items())), str(told["version"]), worker.read_text(encoding="utf-8"))
        self._family, self._name = family, name
        self._ref = GraderRef(f"{family}:{name}", version)
        grader = TextGrader(self._ref.name, self._ref.version, self._judge)
        refused = {one["id"]: one["refused"] for one in told["tasks"] if one["refused"]}
        tasks = tuple(self._task(one) for one in told["tasks"] if not one["refused"])
        self.imported = Imported(name, tasks, grader, gold=gold, refused=refused)

    def __enter__(self) -> Imported:
        return self.imported

    def __exit__(self, *_: object) -> None:
        self._peer.close()

    def _task(self, told: Mapping[str, Any]) -> Task:
        messages = tuple(Message(one["role"], one["content"]) for one in told["messages"])
        return Task(
            id=digest(self._family, self._name, told["id"], *(one.content for one in messages)),
            messages=messages,
            grader=self._ref,
            answer=told["gold"],
            family=self._family,
            domain=DOMAIN,
            hidden={"place": told["place"], "name": told["id"], "choices": told.get("choices")},
        )

    def _judge(self, tasks: Sequence[Task], texts: Sequence[str]) -> list[Verdict | Failure]:
        return [self._verdict(task, text) for task, text in zip(tasks, texts, strict=True)]

    def _verdict(self, task: Task, text: str) -> Verdict | Failure:
        try:
            found = self._peer.ask(op="score", place=task.hidden["place"], reply=text)
        except PeerFailed as error:
            return Failure("crash", str(error)[-500:])
        return Verdict(found["value"], found["evidence"], found["values"])
