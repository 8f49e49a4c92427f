"""One optimiser step in two halves, so that a guard can stand between: measure the gradient, then apply it.

    loss = sum(w_ce * cross_entropy)/n_ce + sum(w_rl * policy_gradient)/n_rl + sum(w_kl * reference_kl)/n_kl
         + sum(w_kd * distillation)/n_kd

Every n is the number of weighted tokens in the whole step, over all micro-batches and ranks, so the result depends
neither on how a step is cut into micro-batches nor on how it is split over processes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from noria.model import Transformer
from noria.training.batch import TokenBatch
from noria.training.integrity import checksum
from noria.training.objectives import PolicyLoss, distillation, policy_gradient, reference_kl
from noria.training.optim import MuonAdamW
from noria.training.parallel import ALONE, Ranks, gradient_norm, sum_gradients

WEIGHTS = {"ce": "w_ce", "rl": "w_rl", "kl": "w_kl", "kd": "w_kd"}


@dataclass(frozen=True)
class Gradient:
    """What one step measured, equal on every rank; the gradient itself lies in each parameter's `grad`."""

    losses: dict[str, float]
    norm: float
    seconds: tuple[float, ...] = ()  # of each rank's own forward and backward passes
    fingerprint: int = 0  # of this rank's own part, before ranks are summed; 0 for a process alone

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.norm) and all(map(math.isfinite, self.losses.values()))


def measure_gradient(
    model: Transformer, batch: TokenBatch, micro_batch_rows: int, bounds: PolicyLoss, ranks: Ranks = ALONE
) -> Gradient:
    """Fill `grad` with the gradient of the whole step's loss; `batch` is the whole step on every rank."""
    counts = weighted_tokens(batch)
    totals: dict[str, float] = dict.fromkeys(counts, 0.0)
    model.zero_grad(set_to_none=True)
    started = time.perf_counter()
    for micro in ranks.micro_batches(batch, micro_batch_rows) if counts else []:
        sums = loss_sums(model, micro, bounds)
        if sums:
            sum((sums[name] / counts[name] for name in sums), start=torch.zeros(())).backward()
        elif ranks.sharded:  # a forward pass gathers weights from all ranks, so each rank needs equally many
            (model.logits(model.hidden(micro.tokens_BT[:1, :1])).sum() * 0.0).backward()
        for name, value in sums.items():
            totals[name] += value.item() / counts[name]
    seconds = time.perf_counter() - started
    if ranks.count == 1:
        norm = gradient_norm(model.parameters()).item() if counts else 0.0
        return Gradient(totals, norm, (seconds,))
    fingerprint = checksum(parameter.grad for parameter in model.parameters())
    if counts:
        sum_gradients(model.parameters(), ranks)
    norm = gradient_norm(model.parameters(), ranks).item() if counts else 0.0
    shared_RK = ranks.gather(torch.tensor([*totals.values(), seconds, norm], dtype=torch.float64))
    losses = dict(zip(totals, shared_RK.sum(0).tolist(), strict=False))
    return Gradient(losses, shared_RK[0, -1].item(), tuple(shared_RK[:, -2].tolist()), fingerprint)


def apply_gradient(
    model: Transformer, optimizer: MuonAdamW, gradient: Gradient, rate: float, max_gradient_norm: float
) -> None:
    """Clip the gradient to its largest norm and step. Without a weighted token there is nothing to apply."""
    if not gradient.losses:
        return
    scale = min(1.0, max_gradient_norm / (gradient.norm + 1e-12))
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(scale)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def step_metrics(gradient: Gradient, batch: TokenBatch, rate: float, *, skipped: bool) -> dict[str, float]:
    """The row of a step: a loss a term, gradient norm before clipping, rate, tokens, whether it was left out."""
    return {
        **{f"loss_{name}": value for name, value in gradient.losses.items()},
        "gradient_norm": gradient.norm,
        "learning_rate": rate,
        "tokens": float(batch.tokens_BT.numel()),
        "skipped": float(skipped),
    }


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
