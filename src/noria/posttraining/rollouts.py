"""What one rollout step sampled, and how it is kept so that a run killed anywhere continues to the same bits.

A policy that has changed can't sample the same again. So what a run makes ahead of use (rollouts of a lag, a batch that
several optimiser steps share) is written to disk before it is used, with the number of optimiser steps that its policy
had taken. A run that goes back, after a kill or by the guard, forgets what was made from there on and makes it again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from safetensors.torch import load_file, save_file

from noria.training import TokenBatch
from noria.training.checkpoint import complete, steps_of
from noria.types import GraderRef, Score, Trace

T = TypeVar("T")


@dataclass(frozen=True)
class Rollouts:
    """Groups of `group` traces each, scored. `made_at`: optimiser steps that the sampling policy had taken."""

    traces: tuple[Trace, ...]
    scores: tuple[Score, ...]
    made_at: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Batches:
    """What the optimiser steps of one rollout step train on, with the metrics of its rollouts."""

    parts: tuple[TokenBatch, ...]
    metrics: Mapping[str, float]


class Kept(Generic[T]):
    """Values by rollout step, each made once; in memory, and in `folder` if there is one.

    `arrive(step)` first, at every optimiser step; then `find`. A file's name holds when it was made.
    """

    def __init__(self, folder: Path | None, write: Callable[[Path, T], None], read: Callable[[Path], T]) -> None:
        self._folder, self._write, self._read = folder, write, read
        self._made_at: dict[int, int] = {}
        self._values: dict[int, T] = {}
        self._last: int | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob("*-made-at-*.new"):  # cut off while it was written
                path.unlink()
            for path in folder.glob("*-made-at-*.kept"):
                number, made_at = (int(part) for part in path.stem.split("-made-at-"))
                self._made_at[number] = made_at

    def arrive(self, step: int) -> None:
        """Tell at which optimiser step the run is. Where it is not the next one, the run went back: what was made at
        or after this step belongs to a line that is no more."""
        if self._last is None or step <= self._last:
            for number in [number for number, made_at in self._made_at.items() if made_at >= step]:
                self._forget(number)
        self._last = step

    def find(self, number: int, step: int, make: Callable[[], T]) -> T:
        """The value of rollout step `number`; made now, at optimiser step `step`, if it never was."""
        if number in self._values:
            return self._values[number]
        if number in self._made_at:
            self._values[number] = self._read(self._path(number))
            return self._values[number]
        value = make()
        self._made_at[number], self._values[number] = step, value
        if self._folder is not None:
            unfinished = self._path(number).with_suffix(".new")
            self._write(unfinished, value)
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(unfinished, self._path(number))
        return value

    def drop_before(self, number: int, needed: int) -> None:
        """Let go of values before `number`; their files stay from `needed` on, for a run that goes back that far."""
        for old in [old for old in self._made_at if old < number]:
            self._values.pop(old, None)
            if self._folder is None or old < needed:
                self._forget(old)

    def _forget(self, number: int) -> None:
        if self._folder is not None:
            self._path(number).unlink(missing_ok=True)
        self._values.pop(number, None)
        del self._made_at[number]

    def _path(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{number:07d}-made-at-{self._made_at[number]:07d}.kept"


def oldest_step(progress_folder: Path | None) -> int:
    """The optimiser step that a run could go back to at most: that of its oldest checkpoint."""
    found = complete(progress_folder) if progress_folder is not None and progress_folder.is_dir() else []
    return steps_of(found[0]) if found else 0


def write_rollouts(path: Path, rollouts: Rollouts) -> None:
    head = {"made_at": rollouts.made_at, "metrics": dict(rollouts.metrics)}
    lines = [json.dumps(head)]
    for trace, score in zip(rollouts.traces, rollouts.scores, strict=True):
        lines.append(json.dumps({"trace": trace.to_json(), "score": asdict(score)}))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_rollouts(path: Path) -> Rollouts:
    with path.open(encoding="utf-8") as file:
        head, *rows = [json.loads(line) for line in file]
    traces = tuple(Trace.from_json(row["trace"]) for row in rows)
    scores = tuple(Score(**{**row["score"], "grader": GraderRef(**row["score"]["grader"])}) for row in rows)
    return Rollouts(traces, scores, head["made_at"], head["metrics"])


def write_batches(path: Path, batches: Batches) -> None:
    tensors = {
        f"{index}.{name}": value.clone(memory_format=torch.contiguous_format)  # the file shares no memory
        for index, part in enumerate(batches.parts)
        for name, value in vars(part).items()
        if value is not None
    }
    save_file(tensors, path, metadata={"metrics": json.dumps(dict(batches.metrics))})


def read_batches(path: Path) -> Batches:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metrics = json.loads(file.metadata()["metrics"])
    parts: dict[int, dict] = {}
    for name, value in load_file(path).items():
        index, _, field = name.partition(".")
        parts.setdefault(int(index), {})[field] = value
    return Batches(tuple(TokenBatch(**parts[index]) for index in sorted(parts)), metrics)


def groups_of(values: Sequence[T], group: int) -> list[Sequence[T]]:
    """Consecutive groups."""
    return [values[start : start + group] for start in range(0, len(values), group)]
