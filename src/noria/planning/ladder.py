"""Which small runs a ladder's budget buys: every size to some horizons, and a sweep of the rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from noria.model.config import ModelConfig
from noria.planning.budget import BudgetError, batch_tokens
from noria.planning.scaling import FEWEST_POINTS

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
    repeats: int = 1,
) -> LadderPlan:
    """Horizons of every size that together cost at most `flops`, with all `repeats` of them and the sweep included.

    Without `most_tokens` each size gets the same FLOPs and its horizons are shares of what they buy; with it the
    longest horizon is `most_tokens`. A size costs its longest stable part and a decay for each horizon; a rate of
    the sweep costs a run to the shortest horizon of the smallest size. Raises BudgetError for a budget too small.
    """
    models = sorted(models, key=lambda model: model.parameters())
    shares = [share / max(shares) for share in sorted(shares)]
    rates = rates if rates > 1 else 0
    if math.isinf(most_tokens):
        tokens = _equal_flops(models, flops, shares, rates, decay_share, repeats)
    else:
        tokens = _equal_tokens(models, flops, [share * most_tokens for share in shares], rates, decay_share, repeats)
    batch = fixed_batch_tokens or batch_tokens(tokens[-1][-1], models[-1].context, LADDER_STEPS)
    horizons = tuple(tuple(int(horizon / batch) for horizon in row) for row in tokens)
    _check(models, horizons, tokens, flops, batch, math.isinf(most_tokens))
    spent = repeats * sum(_cost(model, row, decay_share) for model, row in zip(models, tokens, strict=True))
    spent += rates * tokens[0][0] * models[0].flops_per_token()
    warmup_steps = max(1, math.ceil(horizons[-1][0] / 10))
    return LadderPlan(tuple(models), horizons, horizons[0][0], batch, warmup_steps, spent)


def _check(
    models: Sequence[ModelConfig],
    horizons: Sequence[Sequence[int]],
    tokens: Sequence[Sequence[float]],
    flops: float,
    batch: int,
    equal_flops: bool,
) -> None:
    """Refuses, before anything is trained, a ladder whose runs are too short, alike, or too few for a law."""
    steps = horizons[-1][0]
    if steps < FEWEST_STEPS:
        needed = flops * (FEWEST_STEPS + 1) * batch / tokens[-1][0]
        remedy = (
            f"raise it to {needed:.2g}, or drop the largest size from system.ladder_widths"
            if equal_flops
            else f"raise system.ladder_tokens to {tokens[-1][-1] * needed / flops:.2g} or the shortest ladder_horizons"
        )
        raise BudgetError(
            f"system.ladder_flops = {flops:.3g} leaves {steps} steps of {batch} tokens for the shortest "
            f"horizon of width {models[-1].width}; at least {FEWEST_STEPS} are needed: {remedy}"
        )
    for model, row in zip(models, horizons, strict=True):
        if len(set(row)) < len(row):
            raise BudgetError(
                f"system.ladder_horizons of width {model.width} are {list(row)} steps of {batch} tokens, two of them "
                "alike: set them further apart, or lower system.ladder_batch_tokens"
            )
    points = sum(len(row) for row in horizons)
    if points < FEWEST_POINTS:
        raise BudgetError(
            f"system.ladder_flops = {flops:.3g} buys {points} runs of the ladder; a law needs {FEWEST_POINTS}: "
            "raise it, or lower system.ladder_tokens"
        )


def _cost(model: ModelConfig, horizons: Sequence[float], decay_share: float) -> float:
    """FLOPs of one size: (1 - decay) of its longest horizon and a decay of each, in tokens."""
    return ((1 - decay_share) * max(horizons) + decay_share * sum(horizons)) * model.flops_per_token()


def _equal_flops(
    models: Sequence[ModelConfig], flops: float, shares: Sequence[float], rates: int, decay_share: float, repeats: int
) -> list[list[float]]:
    """Small sizes see many tokens, large ones few.

    What is to be predicted lies further out in both N and D than the ladder can reach at once; this way the smallest
    size reaches a D near it, and the largest an N near it, where equal horizons for all would leave D ten times short
    (docs/stage3_system_recipe.md has the measurement).
    """
    per_longest = (1 - decay_share) + decay_share * sum(shares)
    each = flops / (
        repeats * len(models) * per_longest + rates * shares[0]
    )  # what one run to a longest horizon may cost
    return [[each / model.flops_per_token() * share for share in shares] for model in models]


def _equal_tokens(
    models: Sequence[ModelConfig], flops: float, horizons: Sequence[float], rates: int, decay_share: float, repeats: int
) -> list[list[float]]:
    """The same horizons for all, so that sizes are compared at equal tokens; the largest stops where the budget does.

    A curve falls steeply while a skill is learnt and flatly after, so points of different stretches of it make one law
    look like another. Every size gets the shortest horizon; then small sizes come first: they carry the curve to its
    end, the largest says what size adds.
    """

    def cost(model: ModelConfig, count: int) -> float:
        return repeats * _cost(model, horizons[:count], decay_share)

    first = [cost(model, 1) for model in models]
    swept = rates * horizons[0] * models[0].flops_per_token()
    if swept + sum(first) > flops:
        raise BudgetError(
            f"system.ladder_flops = {flops:.3g} does not bring every size to the shortest horizon of "
            f"{horizons[0]:,.0f} tokens: raise it to {swept + sum(first):.3g} or more, or lower system.ladder_tokens"
        )
    bought, left = [], flops - swept
    for place, model in enumerate(models):
        free = left - sum(first[place + 1 :])
        within = (n for n in range(len(horizons), 1, -1) if cost(model, n) <= free)
        count = next(within, 1)
        bought.append(list(horizons[:count]))
        left -= cost(model, count)
    return bought
