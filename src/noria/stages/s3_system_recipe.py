"""Stage 3, system recipe: a ladder of small models, a fitted law, and from a budget in FLOPs what to train and how."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from noria.artifacts import Numerics, Step, StepContext
from noria.stages.precision import Precision, bytes_per_weight

STAGE = "s3_system_recipe"
Auto = Literal["auto"]


class LadderConfig(BaseModel):
    """What the ladder's runs depend on; changing the budget of the run to be planned does not repeat them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ladder_flops: float = Field(default=1.5e12, gt=0, description="training FLOPs of all small runs together")
    ladder_widths: tuple[int, ...] = Field(default=(32, 64, 96), min_length=2, description="model widths of the ladder")
    ladder_horizons: tuple[float, ...] = Field(
        default=(0.35, 0.6, 1.0),
        min_length=2,
        description="token horizons in (0, 1] relative to each other: the largest stands for ladder_tokens, or without "
        "it for the most that a size's FLOPs buy",
    )
    rate_sweep: tuple[float, ...] = Field(
        default=(0.012, 0.03, 0.075), min_length=1, description="learning rates tried on the smallest size"
    )
    head_width: int = Field(
        default=32, ge=8, description="width of an attention head; model widths are multiples of it"
    )
    width_per_layer: int = Field(default=64, ge=8, description="aspect ratio: model width over number of layers")
    ffn_multiple: int = Field(default=4, ge=1, description="feed-forward width over model width")
    sequence_length: int = Field(default=256, ge=16, description="context of the model and length of a row, in tokens")
    decay_share: float = Field(default=0.4, gt=0, le=1, description="last share of a run spent decaying the rate to 0")
    heldout_rows: int = Field(
        default=32, ge=1, description="held-out rows a source that a loss is measured on; as many as pretraining's"
    )
    ladder_batch_tokens: int | Auto = Field(
        default="auto", description="tokens an optimiser step of the ladder's runs, a multiple of the sequence length"
    )
    ladder_tokens: int | None = Field(
        default=None,
        ge=1,
        description="the longest horizon of the ladder; from the smallest size on, each takes the horizons that "
        "ladder_flops still buys. Without it every size gets the same FLOPs",
    )
    ladder_repeats: int = Field(
        default=1,
        ge=1,
        description="how often every size is trained, each time from a seed of its own: a share of ladder_flops each. "
        "Losses of small runs differ between seeds, and the interval of the predicted loss with them",
    )

    @model_validator(mode="after")
    def _check_ladder(self) -> Self:
        odd = [width for width in self.ladder_widths if width % self.head_width or width <= 0]
        if odd:
            raise ValueError(f"ladder_widths {odd} are not multiples of head_width {self.head_width}")
        if len(set(self.ladder_widths)) * len(set(self.ladder_horizons)) < 6:
            raise ValueError("ladder_widths times ladder_horizons give fewer than the six points that a law needs")
        if not all(0 < share <= 1 for share in self.ladder_horizons):
            raise ValueError(f"ladder_horizons must lie in (0, 1]; found {list(self.ladder_horizons)}")
        if not all(0 < rate <= 1 for rate in self.rate_sweep):
            raise ValueError(f"rate_sweep must lie in (0, 1]; found {list(self.rate_sweep)}")
        _check_batch("ladder_batch_tokens", self.ladder_batch_tokens, self.sequence_length)
        return self


def _check_batch(name: str, batch: int | Auto, sequence_length: int) -> None:
    if batch != "auto" and (batch <= 0 or batch % sequence_length):
        raise ValueError(f"{name} {batch} is not a multiple of sequence_length {sequence_length}")


class Config(LadderConfig):
    """[system]: the budget, the serving limits, and each of N, D, batch and learning rate as "auto" or a value."""

    flops: float = Field(default=6e12, gt=0, description="training FLOPs of the run to be planned")
    parameters: int | Auto = Field(default="auto", description="N, all parameters; the family's nearest size is taken")
    train_tokens: int | Auto = Field(default="auto", description="D, training tokens")
    batch_tokens: int | Auto = Field(
        default="auto", description="tokens an optimiser step, a multiple of the sequence length"
    )
    learning_rate: float | Auto = Field(default="auto", description="peak learning rate, 0 < rate <= 1")
    min_parameters: int = Field(default=1, ge=1, description="serving limit: the smallest model worth serving")
    max_parameters: int = Field(default=10**12, ge=1, description="serving limit: the largest model that can be served")
    serving_tokens: float = Field(default=0.0, ge=0, description="tokens to be served out of the same budget")
    max_epochs: float = Field(
        default=4.0, gt=0, description="passes over the data; up to about 4 are worth fresh data (arXiv 2305.16264)"
    )
    bootstrap: int = Field(default=100, ge=10, description="refits behind the interval of the predicted loss")

    @model_validator(mode="after")
    def _check_budget(self) -> Self:
        _check_batch("batch_tokens", self.batch_tokens, self.sequence_length)
        if self.min_parameters > self.max_parameters:
            raise ValueError(f"min_parameters {self.min_parameters} is above max_parameters {self.max_parameters}")
        if self.parameters != "auto" and not self.min_parameters <= self.parameters <= self.max_parameters:
            raise ValueError(
                f"parameters {self.parameters} lies outside min_parameters {self.min_parameters} "
                f"and max_parameters {self.max_parameters}"
            )
        if self.learning_rate != "auto" and not 0 < self.learning_rate <= 1:
            raise ValueError(f"learning_rate must lie in (0, 1]; found {self.learning_rate}")
        if self.train_tokens != "auto" and self.train_tokens < self.sequence_length:
            raise ValueError(f"train_tokens {self.train_tokens} is less than one row of {self.sequence_length}")
        if self.parameters != "auto" and self.train_tokens != "auto":
            # Attention and the head come on top, so this is the least that the two can cost together.
            cost = 6.0 * self.parameters * self.train_tokens
            if cost > 1.1 * self.flops:
                raise ValueError(
                    f"parameters x train_tokens cost about {cost:.3g} FLOPs (6ND), more than flops = {self.flops:.3g}: "
                    'set one of the two to "auto", or raise flops'
                )
        return self


class _LadderIdentity(LadderConfig):
    seed: int = 0


class _OptimisedLadderIdentity(_LadderIdentity):
    """Where the run's optimiser is not the default: so a recipe without it keeps its keys. The plan's is alike."""

    muon: bool


class _PlanIdentity(Config):
    seed: int = 0


class _OptimisedPlanIdentity(_PlanIdentity):
    muon: bool
    weight_precision: Precision


def ladder(
    config: Config, shards: Step, tokenizer: Step, seed: int = 0, threads: int = 1, *, muon: bool = True
) -> Step:
    """Train each width to each horizon, with the optimiser of the run that is planned (`muon`; false: AdamW for all).
    content/ladder.json: the points, the sweep, the rate and batch."""
    shared = {name: getattr(config, name) for name in LadderConfig.model_fields} | {"seed": seed}
    return Step(
        name="ladder",
        stage=STAGE,
        kind="ladder",
        version=4,
        config=_LadderIdentity(**shared) if muon else _OptimisedLadderIdentity(**shared, muon=muon),
        inputs={"shards": shards, "tokenizer": tokenizer},
        run=_run_ladder,
        numerics=Numerics(threads=threads),
    )


def plan(
    config: Config,
    ladder: Step,
    shards: Step,
    tokenizer: Step,
    seed: int = 0,
    *,
    muon: bool = True,
    weight_precision: Precision = "float32",
) -> Step:
    """Fit the law and choose. content/plan.json holds what stage 4 trains; see docs/stage3_system_recipe.md.

    `muon` and `weight_precision`: as in [pretraining], for the memory that training takes."""
    chosen = {name: getattr(config, name) for name in Config.model_fields} | {"seed": seed}
    if muon and weight_precision == "float32":
        identity = _PlanIdentity(**chosen)
    else:
        identity = _OptimisedPlanIdentity(**chosen, muon=muon, weight_precision=weight_precision)
    return Step(
        name="plan",
        stage=STAGE,
        kind="plan",
        version=4,
        config=identity,
        inputs={"ladder": ladder, "shards": shards, "tokenizer": tokenizer},
        run=_run_plan,
    )


def _run_ladder(context: StepContext) -> Mapping[str, Any]:
    from noria.training.proxies import LadderSettings, run_ladder

    config: _LadderIdentity = context.config
    settings = LadderSettings(
        shards=context.inputs["shards"].content,
        tokenizer=context.inputs["tokenizer"].content / "tokenizer.json",
        flops=config.ladder_flops,
        widths=config.ladder_widths,
        shares=config.ladder_horizons,
        rates=config.rate_sweep,
        head_width=config.head_width,
        width_per_layer=config.width_per_layer,
        ffn_multiple=config.ffn_multiple,
        sequence_length=config.sequence_length,
        decay_share=config.decay_share,
        heldout_rows=config.heldout_rows,
        batch_tokens=None if config.ladder_batch_tokens == "auto" else config.ladder_batch_tokens,
        most_tokens=config.ladder_tokens,
        repeats=config.ladder_repeats,
        seed=config.seed,
        threads=context.numerics.threads if context.numerics else 1,
        muon=not isinstance(config, _OptimisedLadderIdentity) or config.muon,
    )
    started = time.monotonic()
    result, spent = run_ladder(settings, context.progress, context.report)
    _write(context.content / "ladder.json", result)
    seconds = time.monotonic() - started
    _write(
        context.observed / "speed.json", {"seconds": seconds, "flops_per_second": spent / seconds if spent else None}
    )
    return {
        "points": len(result["points"]),
        "best_loss": min((point["loss"] for point in result["points"] if point["loss"] is not None), default=None),
        "learning_rate": result["learning_rate"],
        "batch_tokens": result["batch_tokens"],
        "flops": result["flops"],
    }


def _run_plan(context: StepContext) -> Mapping[str, Any]:
    from noria.planning.decide import Wishes, decide, forecast

    config: _PlanIdentity = context.config
    measured = json.loads((context.inputs["ladder"].content / "ladder.json").read_text(encoding="utf-8"))
    facts = json.loads((context.inputs["shards"].content / "shards.json").read_text(encoding="utf-8"))
    unique = sum(facts["sources"][name]["train_tokens"] for name, weight in facts["weights"].items() if weight > 0)
    wishes = Wishes(
        flops=config.flops,
        parameters=None if config.parameters == "auto" else config.parameters,
        train_tokens=None if config.train_tokens == "auto" else config.train_tokens,
        batch_tokens=None if config.batch_tokens == "auto" else config.batch_tokens,
        learning_rate=None if config.learning_rate == "auto" else config.learning_rate,
        min_parameters=config.min_parameters,
        max_parameters=config.max_parameters,
        serving_tokens=config.serving_tokens,
        most_tokens=config.max_epochs * unique,
        decay_share=config.decay_share,
        bootstrap=config.bootstrap,
        seed=config.seed,
    )
    if isinstance(config, _OptimisedPlanIdentity):
        size = bytes_per_weight(config.weight_precision)
        wishes = replace(wishes, muon=config.muon, bytes_per_weight=size)
    context.report(0, 1, "plan")
    decided = decide(measured, wishes)
    _write(context.content / "plan.json", decided)
    speed = json.loads((context.inputs["ladder"].observed / "speed.json").read_text(encoding="utf-8"))
    _write(context.observed / "forecast.json", forecast(decided, speed["flops_per_second"]))
    context.report(1, 1, "plan")
    return {
        "parameters": decided["parameters"],
        "train_tokens": decided["train_tokens"],
        "predicted_loss": decided["predicted_loss"]["mean"],
        "predicted_low": decided["predicted_loss"]["low"],
        "predicted_high": decided["predicted_loss"]["high"],
    }


def _write(path: Any, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
