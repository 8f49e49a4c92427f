"""What one training run keeps: its history, events and checkpoints, and how it goes back to an earlier state.

Two kinds of going back. To the last checkpoint, when a machine spoilt the state: the run repeats the steps since and
ends in the same bits. To an anchor (a checkpoint at a fixed multiple of steps, so that it does not depend on clocks),
when step after step was rejected: the steps around the first rejected one are then left out.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from noria.model import Transformer
from noria.training import checkpoint
from noria.training.checkpoint import CheckpointError, Saver
from noria.training.guard import Event, GuardConfig, WorkerFault, range_to_leave_out, rejected_in_a_row
from noria.training.optim import MuonAdamW
from noria.training.parallel import ALONE, Ranks

INTERVENTIONS = "interventions.json"
MOST_RETURNS = 3  # a memory that is damaged more often than this is not used any more

History = list[dict[str, float]]


@dataclass(frozen=True)
class Progress:
    """Where a run keeps its progress, who takes part and who is told. Execution: apart from the order of sums over
    several ranks, none of it changes a number.

    A checkpoint is due after `checkpoint_seconds` (unless one is still being written), every `checkpoint_steps`, and at
    the guard's anchors. `keep_last`, `keep_every`: see `checkpoint.Saver`.
    """

    folder: Path | None = None
    checkpoint_seconds: float = 15.0
    on_step: Callable[[int, int, Mapping[str, float]], None] | None = None  # step, steps, metrics
    on_event: Callable[[Event], None] | None = None
    checkpoint_steps: int | None = None
    keep_last: int = 2
    keep_every: int = 0
    ranks: Ranks = ALONE


class Run:
    """The state of one run. On entry it is as a former process left it; on exit, what was being written is written."""

    def __init__(
        self, model: Transformer, optimizer: MuonAdamW, progress: Progress, guard: GuardConfig, steps: int
    ) -> None:
        self._model, self._optimizer, self._progress, self._guard = model, optimizer, progress, guard
        self._steps = steps
        self.history: History = []
        self.events: list[Event] = []
        self._left_out: list[tuple[int, int]] = []
        self._returns = 0
        self._saver: Saver | None = None
        if progress.folder:
            self._saver = Saver(
                progress.folder, progress.ranks, progress.keep_last, progress.keep_every, guard.anchor_steps
            )
            self._read_interventions(progress.folder)
            self._resume()
        self._saved_at = time.monotonic()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._saver is None or (kind is not None and self._progress.ranks.count > 1):
            return  # where a rank has failed, the others may never arrive to finish together
        self._saver.finish()

    def leaves_out(self, step: int) -> bool:
        return any(start <= step < stop for start, stop in self._left_out)

    @property
    def made_up(self) -> int:
        """Steps beyond the last one that make up for those left out."""
        return sum(stop - start for start, stop in self._left_out) if self._guard.make_up else 0

    def position(self, step: int) -> int:
        """Where `step` lies in the schedule: steps left out do not advance it if they are made up for."""
        if not self._guard.make_up:
            return step
        return step - sum(max(0, min(stop, step) - start) for start, stop in self._left_out)

    def record(self, metrics: Mapping[str, float]) -> None:
        """Append a step's metrics and tell of them. Plain floats: a checkpoint holds nothing else."""
        self.history.append({name: float(value) for name, value in metrics.items()})
        if self._progress.on_step and self._progress.ranks.is_first:
            self._progress.on_step(len(self.history) - 1, self._steps + self.made_up, self.history[-1])

    def tell(self, event: Event) -> None:
        """Keep an event and tell of it. A step repeated after going back does not tell the same again."""
        if any((kept.kind, kept.step, kept.message) == (event.kind, event.step, event.message) for kept in self.events):
            return
        self.events.append(event)
        self._write_interventions()
        if self._progress.on_event and self._progress.ranks.is_first:
            self._progress.on_event(event)

    def is_save_due(self) -> bool:
        """All ranks give the first one's answer."""
        if self._saver is None:
            return False
        step, every = len(self.history), self._progress.checkpoint_steps
        if step % self._guard.anchor_steps == 0 or (every and step % every == 0):
            return True
        late = time.monotonic() - self._saved_at > self._progress.checkpoint_seconds and not self._saver.is_busy
        return bool(self._progress.ranks.gather(torch.tensor([int(late)]))[0, 0])

    def save(self) -> None:
        assert self._saver is not None
        self._optimizer.fill_state()
        tensors, counts = _state(self._model, self._optimizer)
        plain = {"history": list(self.history), "counts": counts, "ranks": self._progress.ranks.count}
        self._saver.save(len(self.history), tensors, plain)
        self._saved_at = time.monotonic()

    def return_to_last(self, step: int) -> None:
        """Go back to the newest checkpoint. Raises WorkerFault where there is none, or after too many returns."""
        self._returns += 1
        if self._saver is not None:
            self._saver.finish()
        found = self._line() if self._saver is not None else []
        damaged = self.events[-1].evidence.get("ranks", ())
        if not found or self._returns > MOST_RETURNS:
            why = f"for the {self._returns}th time" if found else "and there is no checkpoint to return to"
            raise WorkerFault(f"{self.events[-1].message}, {why}", step, damaged, socket.gethostname())
        self._load(found[-1])

    def roll_back_if_stuck(self) -> bool:
        """Go back to an anchor when too many steps in a row were rejected; FloatingPointError if there is none."""
        rejected = rejected_in_a_row(self.history)
        if rejected < self._guard.patience_steps:
            return False
        first, now = len(self.history) - rejected, len(self.history)
        if self._saver is not None:
            self._saver.finish()
        anchors = [
            folder
            for folder in (self._line() if self._saver is not None else [])
            if checkpoint.steps_of(folder) % self._guard.anchor_steps == 0 and checkpoint.steps_of(folder) <= first
        ]
        if not anchors or len(self._left_out) >= self._guard.rollbacks:
            gone_back = f" after going back {len(self._left_out)} times" if self._left_out else ""
            raise FloatingPointError(
                f"loss or gradient was not finite or an outlier in {rejected} steps in a row (steps {first + 1} to "
                f"{now}){gone_back}; lower the learning rate, or look at the data of these steps"
            )
        anchor = checkpoint.steps_of(anchors[-1])
        start, stop = range_to_leave_out(first, anchor, self._guard)
        self._left_out.append((start, stop))
        message = f"steps {first} to {now - 1} were rejected: back to step {anchor}, leaving out {start} to {stop - 1}"
        evidence = {"anchor": anchor, "left_out": [start, stop], "rejected": [first, now]}
        self.tell(Event("rolled_back", first, "data or optimiser", message, evidence))
        assert self._saver is not None
        self._saver.discard_after(anchor)
        self._load(anchors[-1])
        return True

    def _line(self) -> list[Path]:
        """Checkpoints of the present line, oldest first: those that were taken before the steps left out, or left
        them out. Others were overtaken by a rollback whose clearing-up was cut off."""
        assert self._progress.folder is not None
        return [folder for folder in checkpoint.complete(self._progress.folder) if self._is_of_line(folder)]

    def _is_of_line(self, folder: Path) -> bool:
        reached = [start for start, _ in self._left_out if start < checkpoint.steps_of(folder)]
        history = checkpoint.read_progress(folder)["history"] if reached else []
        return all(history[start].get("left_out") for start in reached)

    def _resume(self) -> None:
        found = self._line()
        if found:
            taken = checkpoint.steps_of(found[-1])
            if taken > self._steps + self.made_up:
                raise CheckpointError(
                    f"the checkpoint in {self._progress.folder} is of a run of at least {taken} steps, and this one "
                    f"has {self._steps}; remove it to start this step from its beginning"
                )
            self._load(found[-1])

    def _load(self, folder: Path) -> None:
        """Weights, moments and history as they were, in place. The first rank reads every byte to verify it."""
        ranks = self._progress.ranks
        if ranks.is_first:
            checkpoint.verify(folder)
        ranks.barrier()
        self._optimizer.fill_state()
        tensors, _ = _state(self._model, self._optimizer)
        checkpoint.load_tensors(folder, tensors, ranks)
        plain = checkpoint.read_progress(folder)
        for name, parameter in self._model.named_parameters():
            if name in plain["counts"]:
                self._optimizer.state[parameter]["step"] = plain["counts"][name]
        self.history[:] = plain["history"]

    def _write_interventions(self) -> None:
        folder = self._progress.folder
        if folder is None or not self._progress.ranks.is_first:
            return
        unfinished = folder / f"{INTERVENTIONS}.new"
        kept = {"events": [event.to_json() for event in self.events], "left_out": self._left_out}
        unfinished.write_text(json.dumps(kept), encoding="utf-8")
        os.replace(unfinished, folder / INTERVENTIONS)

    def _read_interventions(self, folder: Path) -> None:
        if (folder / INTERVENTIONS).exists():
            kept = json.loads((folder / INTERVENTIONS).read_text(encoding="utf-8"))
            self.events = [Event(**event) for event in kept["events"]]
            self._left_out = [(start, stop) for start, stop in kept["left_out"]]


def _state(model: Transformer, optimizer: MuonAdamW) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Tensors by name, trained weights and moments, which share memory with the live ones; and AdamW's step counts.

    Frozen weights (under an adapter) are no state: they are as whoever starts the run loads them."""
    trained = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    tensors: dict[str, Tensor] = {f"model.{name}": tensor for name, tensor in trained.items()}
    persistent = model.state_dict().keys()
    tensors |= {f"buffer.{name}": tensor for name, tensor in model.named_buffers() if name in persistent}
    counts: dict[str, int] = {}
    for name, parameter in trained.items():
        state: dict[str, Any] = optimizer.state[parameter]
        for part, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{part}.{name}"] = value
            else:
                counts[name] = value
    return {name: tensor.detach() for name, tensor in tensors.items()}, counts
