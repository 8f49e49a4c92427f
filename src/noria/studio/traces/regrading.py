"""Traces graded again, a batch at a time, with what changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from noria.harness.traces import Entry, Library, Query
from noria.studio.traces.place import Given, NotKnown, environment_of
from noria.types import Score

BATCH = 256


@dataclass(frozen=True)
class Regraded:
    number: int
    entry: Entry  # with its new score
    before: Score | None

    @property
    def changed(self) -> bool:
        """In value, components or status; a grader of another version that judges alike changes nothing."""
        return _judged(self.before) != _judged(self.entry.score)

    def change(self) -> dict[str, Any]:
        return {"number": self.number, "before": _value(self.before), "now": _value(self.entry.score)}


def regraded(library: Library, query: Query, given: Given) -> Iterator[list[Regraded]]:
    """Raises NotKnown where a trace has no task, or its environment is not known."""
    batch: list[tuple[int, Entry]] = []
    graders: dict[str, Any] = {}
    for number, entry in library.entries(query):
        if batch and (len(batch) == BATCH or _family(batch[0][1]) != _family(entry)):
            yield _graded(batch, given, graders)
            batch = []
        batch.append((number, entry))
    if batch:
        yield _graded(batch, given, graders)


def _graded(batch: list[tuple[int, Entry]], given: Given, graders: dict[str, Any]) -> list[Regraded]:
    family = _family(batch[0][1])
    if family not in graders:
        graders[family] = environment_of(batch[0][1], given).grader()
    tasks = [entry.task for _, entry in batch if entry.task]
    if len(tasks) != len(batch):
        raise NotKnown("some traces were kept without their task: they can't be graded")
    scores = graders[family].grade(tasks, [entry.trace for _, entry in batch])
    return [
        Regraded(number, replace(entry, score=score), entry.score)
        for (number, entry), score in zip(batch, scores, strict=True)
    ]


def _family(entry: Entry) -> str:
    return entry.task.family if entry.task else ""


def _judged(score: Score | None) -> tuple[Any, ...] | None:
    return None if score is None else (score.status, score.value, score.reason, dict(score.components))


def _value(score: Score | None) -> Any:
    return None if score is None else score.value if score.status == "graded" else f"failed: {score.reason}"
