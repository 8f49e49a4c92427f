"""Every rollout of a training run kept with its step's number; a run killed and resumed keeps each of them once."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from noria.harness.traces.entry import Entry
from noria.harness.traces.library import build_index
from noria.harness.traces.log import TraceWriter
from noria.types import Score, Task, Trace


class StepTraces:
    """`folder` must survive a kill (a step's progress folder); `finish` puts what is in it where it stays."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._writer = folder, TraceWriter(folder, resume=True)
        self._last: int | None = None

    def keep(self, step: int, tasks: Sequence[Task], traces: Sequence[Trace], scores: Sequence[Score]) -> None:
        """Rollouts of `step`. After a resume, or where the guard went back, those of this step and later ones that were
        kept before are dropped: they belong to a line that is no more."""
        if self._last is None or step <= self._last:
            self._writer.rewind(step)
        self._last = step
        together = zip(tasks, traces, scores, strict=True)
        self._writer.append(Entry(trace, task, score, {"step": step}) for task, trace, score in together)

    def finish(self, folder: Path) -> None:
        """Copy the traces to `folder`, with an index for whoever browses them. A kill before the step is published
        loses nothing: the originals stay."""
        self._writer.close()
        shutil.copytree(self._folder, folder)
        build_index(folder)
