"""The guard at work on one run: measures a step's gradient and, on suspicion, replays it to find what is to blame.

The same batch, weights and random state give the same bits. If a replay differs, a machine computed wrongly, and the
result that two of three computations agree on is used; if it does not, the batch or the optimiser is to blame, and the
step is left out. Memory is watched by a checksum of weights and moments, taken after each update and compared before
the next. So a flip anywhere in between is seen, at the cost of reading the state twice a step.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

import torch

from noria.model import Transformer
from noria.training.batch import TokenBatch
from noria.training.guard import (
    Event,
    GuardConfig,
    WorkerFault,
    accepted_steps,
    judge,
    odd_ones_out,
    stragglers,
)
from noria.training.integrity import checksum
from noria.training.objectives import Objective
from noria.training.optim import MuonAdamW
from noria.training.parallel import Ranks
from noria.training.step import Gradient, measure_gradient

TIMED_STEPS = 20  # a straggler is slow in the median of so many steps, not once


class Watch:
    """Guards the steps of one run. Every rank calls the same methods in the same order; they agree on each outcome."""

    def __init__(
        self,
        model: Transformer,
        optimizer: MuonAdamW,
        config: GuardConfig,
        micro_batch_rows: int,
        objective: Objective,
        ranks: Ranks,
        tell: Callable[[Event], None],
    ) -> None:
        self._model, self._optimizer, self._config = model, optimizer, config
        self._rows, self._objective, self._ranks, self._tell = micro_batch_rows, objective, ranks, tell
        self._remembered = 0
        self._seconds: deque[Sequence[float]] = deque(maxlen=TIMED_STEPS)

    def remember(self) -> None:
        """Take the checksum of weights and moments as they now are."""
        self._remembered = self._state()

    def find_damage(self, step: int) -> tuple[int, ...]:
        """The ranks whose weights or moments changed since `remember` by anything but the optimiser; tells of it."""
        flags_R1 = self._ranks.gather(torch.tensor([int(self._state() != self._remembered)]))
        damaged = tuple(int(rank) for rank in flags_R1[:, 0].nonzero()[:, 0])
        if damaged:
            message = f"weights or moments of rank {_list(damaged)} changed in memory during step {step}"
            self._tell(Event("hardware", step, "hardware", message, {"ranks": damaged, "host": socket.gethostname()}))
        return damaged

    def gradient(
        self, step: int, batch: TokenBatch, history: Sequence[dict[str, float]]
    ) -> tuple[Gradient, Literal["accept", "reject", "damaged"]]:
        """Measure the step's gradient (it lies in `grad`) and judge it. Raises WorkerFault if no two replays agree."""
        random_state = torch.get_rng_state()
        gradient = self._measure(batch)
        if self.find_damage(step):
            return gradient, "damaged"
        accepted = accepted_steps(history, self._config.window_steps)
        verdict, evidence = judge(accepted, sum(gradient.losses.values()), gradient.norm, self._config)
        is_due = self._config.replay_steps and step % self._config.replay_steps == self._config.replay_steps - 1
        if verdict != "accept" or is_due:
            gradient, differed = self._replayed(step, batch, gradient, random_state)
            if differed:
                verdict, evidence = judge(accepted, sum(gradient.losses.values()), gradient.norm, self._config)
        self._time(step, gradient)
        if verdict in ("spike", "not finite"):
            message = f"step {step}: loss or gradient was {'an outlier' if verdict == 'spike' else 'not finite'}"
            evidence |= {"verdict": verdict, "replay": "same bits"}
            self._tell(Event("skipped_update", step, "data or optimiser", f"{message}; update left out", evidence))
            return gradient, "reject"
        return gradient, "accept"

    def compare_replicas(self, step: int) -> None:
        """After an update: do all replicas hold the same weights? Raises WorkerFault naming those that don't."""
        every = self._config.replica_steps
        if self._ranks.count == 1 or self._ranks.sharded or not every or step % every:
            return
        prints_R1 = self._ranks.gather(torch.tensor([checksum(self._model.parameters())]))
        odd = odd_ones_out(prints_R1[:, 0].tolist())
        if odd:
            certain = "" if len(odd) < self._ranks.count else " (there is no majority that could tell which)"
            message = f"the weights of rank {_list(odd)} differ from its replicas after step {step}{certain}"
            evidence = {"ranks": odd, "checksums": [f"{value:x}" for value in prints_R1[:, 0].tolist()]}
            self._tell(Event("hardware", step, "hardware", message, evidence))
            raise WorkerFault(f"{message}; restart from the last checkpoint without it", step, odd)

    def _measure(self, batch: TokenBatch) -> Gradient:
        return measure_gradient(self._model, batch, self._rows, self._objective, self._ranks)

    def _state(self) -> int:
        moments = (value for state in self._optimizer.state.values() for value in state.values())
        return checksum([*self._model.parameters(), *(value for value in moments if torch.is_tensor(value))])

    def _replayed(
        self, step: int, batch: TokenBatch, first: Gradient, random_state: torch.Tensor
    ) -> tuple[Gradient, bool]:
        """(the gradient to trust, did a replay differ). `grad` holds that gradient's bits."""
        prints = [self._fingerprints(first)]
        gradients = [first]
        for _ in range(2):
            torch.set_rng_state(random_state)
            gradients.append(self._measure(batch))
            prints.append(self._fingerprints(gradients[-1]))
            if prints[-1] == prints[0]:
                break
        if len(prints) == 2:
            return gradients[-1], False
        odd = tuple(
            rank for rank in range(self._ranks.count) if len({prints[replay][rank] for replay in (0, 1, 2)}) > 1
        )
        agree = prints[2] in prints[:2]
        message = f"step {step}: the same batch and weights gave different gradients on rank {_list(odd)}"
        evidence = {"ranks": odd, "host": socket.gethostname(), "checksums": [[f"{v:x}" for v in p] for p in prints]}
        evidence["norms"] = [gradient.norm for gradient in gradients]
        self._tell(Event("hardware", step, "hardware", f"{message}; {'two of three agree' if agree else ''}", evidence))
        if not agree:
            raise WorkerFault(f"{message}, three times over; take that worker out of use", step, odd)
        return gradients[-1], True

    def _fingerprints(self, gradient: Gradient) -> tuple[int, ...]:
        """One fingerprint a rank: of its own part before summing, or of its shard after."""
        own = gradient.fingerprint or checksum(parameter.grad for parameter in self._model.parameters())
        return tuple(self._ranks.gather(torch.tensor([own]))[:, 0].tolist())

    def _time(self, step: int, gradient: Gradient) -> None:
        """Replicas only: shards wait for each other in every block, so their seconds are equal."""
        if self._ranks.count == 1 or self._ranks.sharded:
            return
        self._seconds.append(gradient.seconds)
        if len(self._seconds) == TIMED_STEPS:
            for rank, ratio in stragglers(list(self._seconds)).items():
                message = f"rank {rank} takes {ratio:.1f} times as long as the others (median of {TIMED_STEPS} steps)"
                self._tell(Event("straggler", step, "hardware", message, {"ranks": (rank,), "ratio": ratio}))
            self._seconds.clear()


def _list(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))
