"""The one training loop: pretraining, supervised fine-tuning, reinforcement learning and distillation.

    loss = sum(w_ce * cross_entropy)/n_ce + sum(w_rl * policy_gradient)/n_rl + sum(w_kl * reference_kl)/n_kl
         + sum(w_kd * distillation)/n_kd

It knows tokens and weights; an algorithm is a function `annotate(step)` that returns annotated batches. Every n is the
number of weighted tokens in the whole step, so the result does not depend on how a step is cut into micro-batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from noria.model import Transformer
from noria.training.batch import TokenBatch
from noria.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from noria.training.objectives import PolicyLoss, distillation, policy_gradient, reference_kl
from noria.training.optim import MuonAdamW, gradient_norm
from noria.training.schedule import Schedule, rate_at


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


@dataclass(frozen=True)
class Annotated:
    """What one step trains on, and what the algorithm measured while making it (rewards, lengths, drift)."""

    batch: TokenBatch
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """Where a run keeps its progress and tells of it. Execution only: none of it changes a number."""

    folder: Path | None = None
    checkpoint_seconds: float = 15.0
    on_step: Callable[[int, int, Mapping[str, float]], None] | None = None  # step, steps, metrics


History = list[dict[str, float]]


def train(
    model: Transformer,
    annotate: Callable[[int], Annotated],
    config: LoopConfig,
    progress: Progress | None = None,
    bounds: PolicyLoss | None = None,
) -> History:
    """Train `model` in place; one dict of metrics a step.

    `annotate(step)` must be a function of the step and the model's weights alone: a run killed and restarted with the
    same `progress.folder` then continues exactly. Raises FloatingPointError when three steps in a row are not finite.
    """
    progress, bounds = progress or Progress(), bounds or PolicyLoss()
    optimizer = MuonAdamW(model, config.learning_rate, config.weight_decay, muon=config.muon)
    history = _resume(model, optimizer, progress)
    if len(history) > config.steps:
        raise CheckpointError(
            f"the checkpoint in {progress.folder} is of a run of at least {len(history)} steps, and this one has "
            f"{config.steps}; remove it to start this step from its beginning"
        )
    saved_at = time.monotonic()
    model.train()
    for step in range(len(history), config.steps):
        annotated = annotate(step)
        rate = config.learning_rate * rate_at(
            config.schedule, step, config.steps, config.warmup_steps, config.decay_share
        )
        metrics = optimiser_step(model, optimizer, annotated.batch, config, rate, bounds)
        # Plain floats: a checkpoint holds nothing else (numpy scalars could be saved, but not loaded).
        history.append({name: float(value) for name, value in {**metrics, **annotated.metrics}.items()})
        _refuse_divergence(history)
        if progress.on_step:
            progress.on_step(step, config.steps, history[-1])
        if progress.folder and time.monotonic() - saved_at > progress.checkpoint_seconds:
            save_checkpoint(progress.folder, _state(model, optimizer, history))
            saved_at = time.monotonic()
    model.eval()
    return history


def optimiser_step(
    model: Transformer, optimizer: MuonAdamW, batch: TokenBatch, config: LoopConfig, rate: float, bounds: PolicyLoss
) -> dict[str, float]:
    """Accumulate the gradient over micro-batches, clip it, step. A step whose gradient is not finite is skipped."""
    counts = weighted_tokens(batch)
    totals: dict[str, float] = dict.fromkeys(counts, 0.0)
    optimizer.zero_grad(set_to_none=True)
    for micro in batch.split(config.micro_batch_rows):
        sums = loss_sums(model, micro, bounds)
        loss = sum((sums[name] / counts[name] for name in sums), start=torch.zeros(()))
        if sums:
            loss.backward()
        for name, value in sums.items():
            totals[name] += value.item() / counts[name]
    metrics = {f"loss_{name}": value for name, value in totals.items()}
    norm = gradient_norm(model.parameters()) if counts else torch.zeros(())
    metrics |= {"gradient_norm": norm.item(), "learning_rate": rate, "tokens": float(batch.tokens_BT.numel())}
    # Moments must never see a value that is not finite, so the whole update is left out (not multiplied by zero).
    metrics["skipped"] = float(
        not (math.isfinite(metrics["gradient_norm"]) and all(map(math.isfinite, totals.values())))
    )
    if counts and not metrics["skipped"]:
        scale = min(1.0, config.max_gradient_norm / (metrics["gradient_norm"] + 1e-12))
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return metrics


WEIGHTS = {"ce": "w_ce", "rl": "w_rl", "kl": "w_kl", "kd": "w_kd"}


def weighted_tokens(batch: TokenBatch) -> dict[str, float]:
    """For each term of the loss that is switched on, how many target tokens carry a weight."""
    counts = {}
    for name, field_name in WEIGHTS.items():
        weights = getattr(batch, field_name)
        count = 0 if weights is None else int((weights != 0).sum())
        if count:
            counts[name] = float(count)
    return counts


def loss_sums(model: Transformer, batch: TokenBatch, bounds: PolicyLoss) -> dict[str, Tensor]:
    """The un-normalised sum of each term over one micro-batch. Logits are made only where some weight is not zero."""
    weights = {name: getattr(batch, field_name) for name, field_name in WEIGHTS.items()}
    weights = {name: value for name, value in weights.items() if value is not None and bool((value != 0).any())}
    if not weights:
        return {}
    chosen_BT = torch.stack([value != 0 for value in weights.values()]).any(0)
    hidden_BTD = model.hidden(
        batch.tokens_BT[:, :-1], segment_BT=None if batch.segment_BT is None else batch.segment_BT[:, :-1]
    )
    logprobs_NV = model.logits(hidden_BTD[chosen_BT]).log_softmax(-1)
    logprob_N = logprobs_NV.gather(1, batch.tokens_BT[:, 1:][chosen_BT][:, None])[:, 0]

    def pick(field_name: str) -> Tensor:
        value = getattr(batch, field_name)
        if value is None:
            raise ValueError(
                f"the batch weighs a loss term that needs `{field_name}`, but the algorithm did not set it"
            )
        return value[chosen_BT]

    sums: dict[str, Tensor] = {}
    if "ce" in weights:
        sums["ce"] = -(pick("w_ce") * logprob_N).sum()
    if "rl" in weights:
        old_N = logprob_N.detach() if batch.old_logprob is None else pick("old_logprob")
        sums["rl"] = policy_gradient(
            logprob_N, old_N, pick("behaviour_logprob"), pick("advantage"), pick("w_rl"), bounds
        )
    if "kl" in weights:
        sums["kl"] = reference_kl(logprob_N, pick("reference_logprob"), pick("w_kl"))
    if "kd" in weights:
        sums["kd"] = distillation(logprobs_NV, pick("teacher_ids"), pick("teacher_weight"), pick("w_kd"))
    return sums


@torch.inference_mode()
def mean_loss(model: Transformer, batches: Sequence[TokenBatch]) -> float:
    """Cross-entropy in nats a token over `batches`, each token weighted by `w_ce`. Raises ValueError without any."""
    total, weight = 0.0, 0.0
    for batch in batches:
        if bool((batch.w_ce != 0).any()):
            total += loss_sums(model, batch, PolicyLoss())["ce"].item()
            weight += batch.w_ce.sum().item()
    if not weight:
        raise ValueError("no token of these batches has a weight, so there is no loss to measure")
    return total / weight


def _refuse_divergence(history: History) -> None:
    if len(history) >= 3 and all(entry["skipped"] for entry in history[-3:]):
        raise FloatingPointError(
            f"loss or gradient was not finite in three steps in a row (steps {len(history) - 2} to {len(history)}); "
            "lower the learning rate"
        )


def _state(model: Transformer, optimizer: MuonAdamW, history: History) -> dict[str, Any]:
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history}


def _resume(model: Transformer, optimizer: MuonAdamW, progress: Progress) -> History:
    state = load_checkpoint(progress.folder) if progress.folder else None
    if state is None:
        return []
    try:
        model.load_state_dict(state["model"])
        saved = [group["kind"] for group in state["optimizer"]["param_groups"]]
        own = [group["kind"] for group in optimizer.param_groups]
        if saved != own:
            raise ValueError(f"its optimiser's parts are {saved}, and this run's {own}")
        optimizer.load_state_dict(state["optimizer"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint in {progress.folder} is of another run's shape: {error}") from error
    return list(state["history"])
