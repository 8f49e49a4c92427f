"""Which small runs a ladder's budget buys: the same token horizons for every size, and a sweep of the rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from noria.model.config import ModelConfig
from noria.planning.budget import BudgetError, batch_tokens


@dataclass(frozen=True)
class LadderPlan:
    """Horizons in optimiser steps, shortest first, one batch size for all runs."""

    models: tuple[ModelConfig, ...]
    horizons: tuple[int, ...]
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
    fewest_steps: int = 16,
) -> LadderPlan:
    """The longest horizon D that `flops` buy for all models together, and `shares` of it.

    Cost of one size: the longest stable part and a decay for each horizon, (1 - decay) D + decay * sum(shares) D tokens
    (`training.ladder`). Every size sees the same horizons and the same batch, so that N and D are not confounded.
    """
    longest_share = max(shares)
    per_token = sum(model.flops_per_token() for model in models)
    per_horizon_token = per_token * ((1 - decay_share) * longest_share + decay_share * sum(shares)) / longest_share
    smallest = min(models, key=lambda model: model.parameters())
    middle = sorted(shares)[len(shares) // 2] / longest_share
    per_horizon_token += rates * middle * smallest.flops_per_token() if rates > 1 else 0.0
    longest_tokens = flops / per_horizon_token
    batch = fixed_batch_tokens or batch_tokens(longest_tokens, smallest.context)
    horizons = tuple(int(longest_tokens * share / longest_share / batch) for share in sorted(shares))
    if horizons[0] < fewest_steps or len(set(horizons)) < len(horizons):
        needed = flops * fewest_steps / max(longest_tokens * min(shares) / longest_share / batch, 1e-9)
        raise BudgetError(
            f"system.ladder_flops = {flops:.3g} leaves {horizons[0]} steps of {batch} tokens for the shortest horizon; "
            f"at least {fewest_steps} are needed: raise it to {needed:.2g} or drop a size from system.ladder_widths"
        )
    return LadderPlan(tuple(models), horizons, batch, max(1, horizons[0] // 10), longest_tokens * per_horizon_token)
