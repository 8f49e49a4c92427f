"""Which small runs a ladder's budget buys: an equal share of it for every size, and a sweep of the rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from noria.model.config import ModelConfig
from noria.planning.budget import BudgetError, batch_tokens

# A horizon shorter than this is all warm-up and decay; and a ladder's runs keep about this many steps.
FEWEST_STEPS, LADDER_STEPS = 8, 96


@dataclass(frozen=True)
class LadderPlan:
    """`horizons[i]` are those of `models[i]` in optimiser steps, shortest first; the sweep trains models[0] for
    `sweep_steps`. One batch size and one warm-up for all runs."""

    models: tuple[ModelConfig, ...]
    horizons: tuple[tuple[int, ...], ...]
    sweep_steps: int
    batch_tokens: int
    warmup_steps: int
    flops: float


def plan_ladder(
    models: Sequence[ModelConfig],
    flops: float,
    shares: Sequence[float],
    rates: int,
    decay_share: float,
    fixed_batch_tokens: int | None = None,
    most_tokens: float = math.inf,
) -> LadderPlan:
    """Each size gets the same FLOPs: small ones see many tokens, large ones few. None sees over `most_tokens`, and
    what a size leaves unspent goes to the larger ones.

    What is to be predicted lies further out in both N and D than the ladder can reach at once; this way the smallest
    size reaches a D near it, and the largest an N near it, where equal horizons for all would leave D ten times short
    (docs/stage3_system_recipe.md has the measurement). A size costs its longest stable part and a decay for each
    horizon: (1 - decay) D + decay * sum(shares) D tokens. A rate of the sweep costs a run to the shortest horizon of
    the smallest size.
    """
    models, shares = sorted(models, key=lambda model: model.parameters()), sorted(shares)
    scale = 1.0 / shares[-1]
    per_longest = (1 - decay_share) + decay_share * scale * sum(shares)
    swept = rates * scale * shares[0] if rates > 1 else 0.0
    longest: list[float] = []
    left = flops
    for place, model in enumerate(models):
        runs = (len(models) - place) * per_longest + (0.0 if place else swept)  # as runs to a longest horizon
        longest.append(min(left / runs / model.flops_per_token(), most_tokens))
        left -= longest[-1] * model.flops_per_token() * (per_longest + (0.0 if place else swept))
    batch = fixed_batch_tokens or batch_tokens(longest[-1], models[-1].context, LADDER_STEPS)
    horizons = tuple(tuple(int(tokens * part * scale / batch) for part in shares) for tokens in longest)
    if horizons[-1][0] < FEWEST_STEPS or len(set(horizons[-1])) < len(shares):
        needed = flops * (FEWEST_STEPS + 1) * batch / (longest[-1] * shares[0] * scale)
        raise BudgetError(
            f"system.ladder_flops = {flops:.3g} leaves {horizons[-1][0]} steps of {batch} tokens for the shortest "
            f"horizon of width {models[-1].width}; at least {FEWEST_STEPS} are needed: raise it to {needed:.2g}, "
            "or drop the largest size from system.ladder_widths"
        )
    return LadderPlan(
        tuple(models), horizons, horizons[0][0], batch, max(1, math.ceil(horizons[-1][0] / 10)), flops - left
    )
