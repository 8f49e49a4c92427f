"""The small runs behind a plan: a sweep of the learning rate on the smallest size, then every size to every horizon."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from noria.data.shards import TokenStream
from noria.data.tokenizer import Tokenizer
from noria.model import ModelConfig, Transformer
from noria.planning import MeasuredRate, ShapeFamily, best_rate, learning_rate
from noria.planning.ladder import LadderPlan, plan_ladder
from noria.training.heldout import Heldout
from noria.training.ladder import ladder_steps, train_horizons
from noria.training.loop import LoopConfig
from noria.training.pretraining import batch_at
from noria.types import seed_of

Report = Callable[..., None]


@dataclass(frozen=True)
class LadderSettings:
    """What to train on, and which sizes, horizons (relative to the longest) and rates to try, how many times over."""

    shards: Path
    tokenizer: Path
    flops: float
    widths: tuple[int, ...]
    shares: tuple[float, ...]
    rates: tuple[float, ...]
    head_width: int
    width_per_layer: int
    ffn_multiple: int
    sequence_length: int
    decay_share: float
    heldout_rows: int
    batch_tokens: int | None
    most_tokens: int | None
    repeats: int
    seed: int
    threads: int
    muon: bool = True  # as the planned run, or its loss and rate would be those of another optimiser


def run_ladder(settings: LadderSettings, progress: Path, report: Report) -> tuple[dict[str, Any], float]:
    """(what content/ladder.json holds, FLOPs spent in this process). A finished run is kept in `progress` and is not
    repeated after a kill. `loss` is the mixture's held-out loss in nats a token."""
    torch.set_num_threads(settings.threads)
    weights = json.loads((settings.shards / "shards.json").read_text(encoding="utf-8"))["weights"]
    tokenizer = Tokenizer.load(settings.tokenizer)
    family = _family(settings, tokenizer.vocab_size)
    models = [family.at(width) for width in sorted(settings.widths)]
    plan = plan_ladder(
        models,
        settings.flops,
        settings.shares,
        len(settings.rates),
        settings.decay_share,
        settings.batch_tokens,
        settings.most_tokens or math.inf,
        settings.repeats,
    )
    runs = _Runs(settings, plan, weights, tokenizer.bos, progress, report)
    smallest = plan.models[0]
    tried = settings.rates if len(settings.rates) > 1 else ()
    sweep = [(rate, runs.losses(smallest, (plan.sweep_steps,), rate)[0]) for rate in tried]
    best = best_rate(sweep) if sweep else settings.rates[0]
    swept = MeasuredRate(best, plan.batch_tokens, smallest.width, plan.sweep_steps * plan.batch_tokens)
    points = []
    for repeat, (model, horizons) in itertools.product(
        range(settings.repeats), zip(plan.models, plan.horizons, strict=True)
    ):
        # At equal tokens all sizes take the rate of the longest run, or it would differ with the size as well.
        longest = settings.most_tokens or max(horizons) * plan.batch_tokens
        rate = learning_rate(swept, plan.batch_tokens, model.width, longest)
        for horizon, loss in zip(horizons, runs.losses(model, horizons, rate, repeat), strict=True):
            points.append(
                {
                    "repeat": repeat,
                    "width": model.width,
                    "layers": model.layers,
                    "parameters": model.parameters(),
                    "matmul_parameters": model.matmul_parameters(),
                    "tokens": horizon * plan.batch_tokens,
                    "learning_rate": rate,
                    "loss": loss if math.isfinite(loss) else None,
                }
            )
    result = {
        "points": points,
        "sweep": [
            {
                "learning_rate": rate,
                "loss": loss if math.isfinite(loss) else None,
                "tokens": plan.sweep_steps * plan.batch_tokens,
            }
            for rate, loss in sweep
        ],
        "learning_rate": best,
        "rate_width": smallest.width,
        "rate_tokens": swept.tokens,
        "batch_tokens": plan.batch_tokens,
        "warmup_tokens": plan.warmup_steps * plan.batch_tokens,
        "decay_share": settings.decay_share,
        "flops": plan.flops,
        "family": vars(family),
    }
    return result, runs.spent


def _family(settings: LadderSettings, vocab_size: int) -> ShapeFamily:
    return ShapeFamily(
        vocab_size=vocab_size,
        context=settings.sequence_length,
        head_width=settings.head_width,
        width_per_layer=settings.width_per_layer,
        ffn_multiple=settings.ffn_multiple,
    )


class _Runs:
    """Trains one size at one rate to some horizons, or remembers having done so. Each repeat has a seed of its own."""

    def __init__(
        self,
        settings: LadderSettings,
        plan: LadderPlan,
        weights: dict[str, float],
        bos: int,
        progress: Path,
        report: Report,
    ) -> None:
        length = settings.sequence_length
        self.settings, self.plan, self.progress, self.report = settings, plan, progress, report
        self.heldout = Heldout.load(settings.shards, weights, length, settings.heldout_rows, bos)
        self.seeds = [settings.seed, *(seed_of(settings.seed, "ladder", n) for n in range(1, settings.repeats))]
        self.streams = [
            TokenStream(settings.shards, weights, length, plan.batch_tokens // length, seed) for seed in self.seeds
        ]
        self.done, self.spent = 0.0, 0.0

    def losses(self, model: ModelConfig, horizons: tuple[int, ...], rate: float, repeat: int = 0) -> list[float]:
        flops = self._flops(model, horizons)
        path = self.progress / f"{model.width}-{rate:g}-{'-'.join(map(str, horizons))}-{repeat}.json"
        if path.exists():
            self.done += flops
            return json.loads(path.read_text(encoding="utf-8"))
        start, per_step = self.done, flops / ladder_steps(horizons, self.settings.decay_share)

        def advance(_: float) -> None:
            self.done += per_step
            self.report(self.done, self.plan.flops, "FLOPs", f"width {model.width}, rate {rate:g}")

        config = LoopConfig(
            steps=max(horizons),
            learning_rate=rate,
            warmup_steps=self.plan.warmup_steps,
            decay_share=self.settings.decay_share,
            muon=self.settings.muon,
        )
        measured = train_horizons(
            Transformer(model, seed=self.seeds[repeat]),
            lambda step: batch_at(self.streams[repeat], step),
            horizons,
            config,
            self._measure,
            advance,
        )
        self.done = start + flops
        self.spent += flops
        unfinished = path.with_suffix(".new")
        unfinished.write_text(json.dumps(measured), encoding="utf-8")
        os.replace(unfinished, path)
        return measured

    def _flops(self, model: ModelConfig, horizons: tuple[int, ...]) -> float:
        steps = ladder_steps(horizons, self.settings.decay_share)
        return steps * self.plan.batch_tokens * model.flops_per_token()

    def _measure(self, model: Transformer) -> float:
        return self.heldout.mean(self.heldout.losses(model))
