"""Several token horizons from one run: a constant rate, and a short decay branch for each horizon (WSD).

A branch is bitwise what a run of its own with that horizon would be: the same warm-up and stable part, the same batches
(data order is a function of the step), then its decay. So a ladder of H horizons costs one stable part and H decays
instead of H whole runs (arXiv 2405.18392; WSD-S is arXiv 2410.05192).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

from noria.model import Transformer
from noria.training.batch import TokenBatch
from noria.training.loop import LoopConfig, optimiser_step
from noria.training.objectives import Objective
from noria.training.optim import MuonAdamW
from noria.training.schedule import rate_at


def stable_steps(horizon: int, decay_share: float) -> int:
    """How many steps of a run of `horizon` steps come before its decay."""
    return horizon - math.floor(decay_share * horizon)


def ladder_steps(horizons: Sequence[int], decay_share: float) -> int:
    """Optimiser steps that all `horizons` cost together: the longest stable part and every decay."""
    return max(stable_steps(h, decay_share) for h in horizons) + sum(h - stable_steps(h, decay_share) for h in horizons)


def train_horizons(
    model: Transformer,
    batch_at: Callable[[int], TokenBatch],
    horizons: Sequence[int],
    config: LoopConfig,
    measure: Callable[[Transformer], float],
    on_step: Callable[[float], None] | None = None,
) -> list[float]:
    """`measure(model)` at the end of each horizon, shortest first; inf for a branch that diverged.

    `config` gives rate, warm-up, decay share and clipping; its `steps` and `schedule` are not used.
    """
    optimizer = MuonAdamW(model, config.learning_rate, config.weight_decay, muon=config.muon)
    measured, step = [], 0
    for horizon in sorted(horizons):
        branch = stable_steps(horizon, config.decay_share)
        for early in range(step, branch):
            _step(model, optimizer, batch_at(early), config, rate_at("constant", early, horizon, config.warmup_steps))
            _tell(on_step, config.learning_rate)
        step = branch
        kept = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        for late in range(branch, horizon):
            factor = rate_at("wsd", late, horizon, config.warmup_steps, config.decay_share)
            _step(model, optimizer, batch_at(late), config, factor)
            _tell(on_step, config.learning_rate * factor)
        loss = measure(model)
        measured.append(loss if math.isfinite(loss) else math.inf)
        model.load_state_dict(kept[0])
        optimizer.load_state_dict(kept[1])
    return measured


def _step(model: Transformer, optimizer: MuonAdamW, batch: TokenBatch, config: LoopConfig, factor: float) -> None:
    model.train()
    optimiser_step(model, optimizer, batch, config, config.learning_rate * factor, Objective())


def _tell(on_step: Callable[[float], None] | None, rate: float) -> None:
    if on_step:
        on_step(rate)
