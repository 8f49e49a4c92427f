"""From a measured ladder and a budget to one plan: N, D, batch, learning rate, schedule, and the loss to expect."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from noria.model.config import ModelConfig
from noria.planning.budget import (
    BudgetError,
    Choice,
    MeasuredRate,
    ShapeFamily,
    batch_tokens,
    choose,
    forecast_seconds,
    learning_rate,
    round_to,
    schedule,
    tokens_within,
)
from noria.planning.memory import FP32, serving_bytes, training_bytes
from noria.planning.scaling import Fit, Law, Point, fit_with_uncertainty, intervals, predict


@dataclass(frozen=True)
class Wishes:
    """The budget and its limits, and what the recipe fixes; None is to be chosen."""

    flops: float
    parameters: int | None
    train_tokens: int | None
    batch_tokens: int | None
    learning_rate: float | None
    min_parameters: int
    max_parameters: int
    serving_tokens: float
    most_tokens: float
    decay_share: float
    bootstrap: int = 100
    seed: int = 0
    muon: bool = True  # how the planned run is trained: its memory depends on it, nothing that is chosen does
    bytes_per_weight: int = FP32


def decide(measured: Mapping[str, Any], wishes: Wishes) -> dict[str, Any]:
    """The content of plan.json from that of ladder.json. Numbers that later steps are built from are rounded, so that
    noise in a measurement's last digits changes nothing downstream. Raises BudgetError for wishes that contradict."""
    points = [Point(p["matmul_parameters"], p["tokens"], p["loss"]) for p in measured["points"] if _finite(p["loss"])]
    try:
        fit = fit_with_uncertainty(points, wishes.bootstrap, wishes.seed)
    except ValueError as error:
        raise BudgetError(f"the ladder carries no law: {error}") from error
    choice = _choose(fit.law, ShapeFamily(**measured["family"]), wishes)
    model = choice.model
    batch = wishes.batch_tokens or batch_tokens(choice.tokens, model.context)
    steps = max(1, (choice.tokens // batch))
    tokens = steps * batch
    swept = MeasuredRate(
        measured["learning_rate"], measured["batch_tokens"], measured["rate_width"], measured["rate_tokens"]
    )
    rate = wishes.learning_rate or learning_rate(swept, batch, model.width, tokens)
    timing = schedule(tokens, model.parameters(), wishes.decay_share)
    return {
        "model": model.model_dump(),
        "parameters": model.parameters(),
        "matmul_parameters": model.matmul_parameters(),
        "train_tokens": tokens,
        "steps": steps,
        "batch_tokens": batch,
        "sequence_length": model.context,
        "learning_rate": rate,
        "schedule": {
            "name": "wsd",
            "warmup_steps": max(1, timing.warmup_tokens // batch),
            "decay_share": wishes.decay_share,
        },
        "flops": round_to(tokens * model.flops_per_token(), 6),
        "predicted_loss": _prediction(fit, model.matmul_parameters(), tokens),
        "law": _law(fit),
        "choices": {
            "parameters": "auto" if wishes.parameters is None else "fixed",
            "train_tokens": "auto" if wishes.train_tokens is None else "fixed",
            "batch_tokens": "auto" if wishes.batch_tokens is None else "fixed",
            "learning_rate": "auto" if wishes.learning_rate is None else "fixed",
        },
        "limits": {
            "flops": wishes.flops,
            "min_parameters": wishes.min_parameters,
            "max_parameters": wishes.max_parameters,
            "serving_tokens": wishes.serving_tokens,
        },
        "memory_bytes": {
            # Of the whole batch in one pass: what fewer rows a pass need, stages/s4_pretraining.py knows.
            "training": training_bytes(
                model, batch // model.context, bytes_per_weight=wishes.bytes_per_weight, muon=wishes.muon
            ).total,
            "serving_one_conversation": serving_bytes(model, 1),
        },
    }


def forecast(plan: Mapping[str, Any], flops_per_second: float | None) -> dict[str, Any]:
    """How long the plan takes at the ladder's measured speed; for observed/ only."""
    seconds = None if flops_per_second is None else forecast_seconds(plan["flops"], flops_per_second)
    return {"flops_per_second": flops_per_second, "seconds": seconds}


def _choose(law: Law, family: ShapeFamily, wishes: Wishes) -> Choice:
    if wishes.parameters is None:
        shapes = family.shapes(wishes.min_parameters, wishes.max_parameters)
        if not shapes:
            raise BudgetError(
                f"no shape of the family has between {wishes.min_parameters:,} (system.min_parameters) and "
                f"{wishes.max_parameters:,} (system.max_parameters) parameters: widen the limits"
            )
    else:
        shapes = [nearest_shape(family, wishes.parameters)]
    if wishes.train_tokens is None:
        return choose(law.loss, shapes, wishes.flops, wishes.most_tokens, wishes.serving_tokens)
    if wishes.train_tokens > wishes.most_tokens:
        raise BudgetError(
            f"system.train_tokens = {wishes.train_tokens:,} is more than the data offer in system.max_epochs passes "
            f"({wishes.most_tokens:,.0f}): take fewer tokens, more epochs or more data"
        )
    affordable = [
        shape for shape in shapes if tokens_within(wishes.flops, shape, wishes.serving_tokens) >= wishes.train_tokens
    ]
    if not affordable:
        cost = min(wishes.train_tokens * shape.flops_per_token() for shape in shapes)
        raise BudgetError(
            f"system.train_tokens = {wishes.train_tokens:,} costs at least {cost:.3g} FLOPs with an allowed shape, "
            f"more than system.flops = {wishes.flops:.3g}: raise the budget, or lower train_tokens or min_parameters"
        )
    return choose(law.loss, affordable, wishes.flops, wishes.train_tokens, wishes.serving_tokens)


def nearest_shape(family: ShapeFamily, parameters: int) -> ModelConfig:
    """The shape whose parameter count is nearest to `parameters` in ratio."""
    shapes = family.shapes(0, 2 * parameters) or [family.at(family.head_width)]
    return min(shapes, key=lambda shape: abs(math.log(shape.parameters() / parameters)))


def _prediction(fit: Fit, parameters: float, tokens: float) -> dict[str, float]:
    mean, low, high = predict(fit, parameters, tokens)
    return {"mean": round_to(mean, 5), "low": round_to(low, 5), "high": round_to(high, 5), "level": 0.95}


def _law(fit: Fit) -> dict[str, Any]:
    spread = {name: [round_to(value, 4) for value in pair] for name, pair in intervals(fit).items()}
    numbers = {name: round_to(value, 6) for name, value in asdict(fit.law).items()}
    return {
        **numbers,
        "intervals": spread,
        "heldout_error": round_to(fit.heldout.error, 3),
        "refits": len(fit.resampled),
    }


def _finite(loss: float | None) -> bool:
    return loss is not None and math.isfinite(loss)
