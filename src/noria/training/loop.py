"""The one training loop: pretraining, supervised fine-tuning, reinforcement learning and distillation.

It knows tokens and weights; an algorithm is a function `annotate(step)` that returns annotated batches. A step is:
annotate, measure the gradient, let the guard judge it, apply it, record it. What a step computes is in `step.py`, what
the guard does in `guard.py` (judgement) and `watch.py` (replays), what a run keeps in `run.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field, model_validator

from noria.model import Transformer, balance_experts
from noria.training.batch import TokenBatch
from noria.training.bf16_weights import weights_in
from noria.training.compute import Precision, computing
from noria.training.guard import GuardConfig
from noria.training.heap import kept_mapped
from noria.training.objectives import Objective
from noria.training.optim import MuonAdamW
from noria.training.parallel import Ranks
from noria.training.run import History, Progress, Run
from noria.training.schedule import Schedule, rate_at
from noria.training.step import apply_gradient, measure_gradient, step_metrics
from noria.training.watch import Watch


class LoopConfig(BaseModel):
    """How long and how fast; part of an artifact's identity."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(ge=1, description="optimiser steps")
    learning_rate: float = Field(gt=0, le=1)
    schedule: Schedule = "wsd"
    warmup_steps: int = Field(default=10, ge=0)
    decay_share: float = Field(default=0.4, gt=0, le=1, description="last share of the steps spent decaying (wsd)")
    weight_decay: float = Field(default=0.1, ge=0)
    max_gradient_norm: float = Field(default=1.0, gt=0)
    micro_batch_rows: int = Field(default=64, ge=1, description="rows a forward pass; changes memory, not the result")
    muon: bool = Field(default=True, description="Muon for hidden matrices; false: AdamW for all")
    expert_bias_rate: float = Field(
        default=0.001, ge=0, description="step of the routers' biases, where the model has experts (model/moe.py)"
    )
    precision: Precision = Field(default="float32", description="of matrix products; sums stay fp32")
    weight_precision: Precision = Field(
        default="float32",
        description="of matrices, their gradients and moments; bfloat16: half the memory, updates rounded at random; "
        "needs precision bfloat16, and one process",
    )
    compile: bool = Field(default=False, description="torch.compile each block; needs a C++ compiler")
    recompute_activations: bool = Field(
        default=False, description="activation checkpointing: less memory, a third more products"
    )
    guard: GuardConfig = GuardConfig()

    @model_validator(mode="after")
    def _products_fit_weights(self) -> LoopConfig:
        if self.weight_precision == "bfloat16" and self.precision == "float32":
            raise ValueError('weight_precision = "bfloat16" needs precision = "bfloat16": set it, or leave both out')
        return self

    def optimizer(self, model: Transformer) -> MuonAdamW:
        products = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        return MuonAdamW(model, self.learning_rate, self.weight_decay, muon=self.muon, products=products)

    def rate(self, step: int) -> float:
        """The learning rate at a step."""
        factor = rate_at(self.schedule, step, self.steps, self.warmup_steps, self.decay_share)
        return self.learning_rate * factor


@dataclass(frozen=True)
class Annotated:
    """What one step trains on, and what the algorithm measured while making it (rewards, lengths, drift)."""

    batch: TokenBatch
    metrics: Mapping[str, float] = field(default_factory=dict)


def train(
    model: Transformer,
    annotate: Callable[[int], Annotated],
    config: LoopConfig,
    progress: Progress | None = None,
    objective: Objective | None = None,
) -> History:
    """Train `model` in place; one dict of metrics a step.

    `annotate(step)` must be a function of the step and the model's weights alone: a run killed and restarted with the
    same `progress.folder` then continues exactly. On several ranks it must return the same whole batch on each.

    Raises FloatingPointError when step after step is rejected and going back did not help, WorkerFault when a machine
    is to blame, CheckpointError when a checkpoint can't be read or written.
    """
    progress, objective = progress or Progress(), objective or Objective()
    optimizer = config.optimizer(model)
    model.train()
    how = computing(
        model, config.precision, compiled=config.compile, recompute_activations=config.recompute_activations
    )
    stored = weights_in(model, config.weight_precision, progress.ranks)
    with kept_mapped() as heap, stored, how, Run(model, optimizer, progress, config.guard, config.steps) as run:
        watch = Watch(model, optimizer, config.guard, config.micro_batch_rows, objective, progress.ranks, run.tell)
        watch.remember()
        while (step := len(run.history)) < config.steps + run.made_up:
            rate = config.rate(run.position(step))
            if run.leaves_out(step):
                run.record({"learning_rate": rate, "tokens": 0.0, "skipped": 1.0, "left_out": 1.0})
                continue
            annotated = annotate(step)
            heap.expect(annotated.batch.tokens_BT.shape)
            gradient, verdict = watch.gradient(step, annotated.batch, run.history)
            if verdict == "damaged":
                run.return_to_last(step)
                watch.remember()
                continue
            accepted = verdict == "accept"
            # Moments must never see a rejected gradient, so the whole update is left out (not multiplied by zero).
            if accepted:
                apply_gradient(model, optimizer, gradient, rate, config.max_gradient_norm)
            # Once a step, however often the guard replayed it; a rejected batch moves nothing, its loads are dropped.
            routed = _balance(model, config.expert_bias_rate if accepted else 0.0, progress.ranks)
            if accepted:
                watch.remember()
                watch.compare_replicas(step)
            measured = step_metrics(gradient, annotated.batch, rate, skipped=not accepted)
            run.record({**measured, **routed, **annotated.metrics})
            if run.roll_back_if_stuck():
                watch.remember()
                continue
            if run.is_save_due():
                if watch.find_damage(step):  # what is saved must be what the optimiser wrote
                    run.return_to_last(step)
                    watch.remember()
                    continue
                run.save()
    model.eval()
    return run.history


def _balance(model: Transformer, rate: float, ranks: Ranks) -> dict[str, float]:
    """Move the routers' biases by the loads of this step; how far the busiest expert lay above an even load."""
    if model.config.moe is None:
        return {}
    excess = balance_experts(model, rate, reduce=dist.all_reduce if ranks.count > 1 else None)
    return {"expert_excess": max(excess, default=0.0)}


def optimiser_step(
    model: Transformer, optimizer: MuonAdamW, batch: TokenBatch, config: LoopConfig, rate: float, objective: Objective
) -> dict[str, float]:
    """One step outside a run, for short searches: unguarded but for this, that a gradient not finite is left out."""
    gradient = measure_gradient(model, batch, config.micro_batch_rows, objective)
    if gradient.is_finite:
        apply_gradient(model, optimizer, gradient, rate, config.max_gradient_norm)
    return step_metrics(gradient, batch, rate, skipped=not gradient.is_finite)
