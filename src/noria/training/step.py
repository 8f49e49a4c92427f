"""One optimiser step in two halves, so that a guard can stand between: measure the gradient, then apply it.

    loss = sum(w_ce * cross_entropy)/n_ce + sum(w_rl * policy_gradient)/n_rl + sum(w_kl * reference_kl)/n_kl
         + sum(w_kd * distillation)/n_kd

Every n is the number of weighted tokens in the whole step, over all micro-batches and ranks, so the result depends
neither on how a step is cut into micro-batches nor on how it is split over processes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from noria.model import Transformer
from noria.training.batch import TokenBatch
from noria.training.chunked_loss import Chosen, Terms, chunked_sums
from noria.training.compute import is_compiled
from noria.training.integrity import checksum
from noria.training.objectives import PolicyLoss, distillation, policy_gradient, reference_kl
from noria.training.optim import MuonAdamW
from noria.training.parallel import ALONE, Ranks, gradient_norm, sum_gradients

# Up to here logits are small enough to be made whole, which a fp32 model does.
WHOLE_LOGITS_VOCABULARY = 4096
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
        loss, sums = loss_of(model, micro, bounds, counts)
        if loss is not None:
            loss.backward()
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
    for parameter in model.parameters() if scale < 1.0 else ():
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


def loss_of(
    model: Transformer, batch: TokenBatch, bounds: PolicyLoss, counts: Mapping[str, float]
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """(the sum over terms of each one's sum over its count, to be differentiated; the sums) of one micro-batch.

    Where logits would be large they are made in chunks (`chunked_loss.py`): the same loss, rounded in another order.
    Without a weighted token: (None, {}).
    """
    chosen_BT = chosen_targets(batch)
    if chosen_BT is None:
        return None, {}
    hidden_ND = chosen_states(model, batch, chosen_BT)
    if hidden_ND.dtype == torch.float32 and model.config.vocab_size <= WHOLE_LOGITS_VOCABULARY:
        sums = _sums_from_whole_logits(model, hidden_ND, batch, chosen_BT, bounds)
        return sum((sums[name] / counts[name] for name in sums), start=torch.zeros(())), sums
    target_N, ids_NK = batch.tokens_BT[:, 1:][chosen_BT], teacher_ids(batch, chosen_BT)
    terms, cap = loss_terms(batch, chosen_BT, bounds), model.config.logit_soft_cap
    compiled = is_compiled(model)
    return chunked_sums(hidden_ND, model.head.weight, target_N, ids_NK, terms, counts, cap, compiled=compiled)


def loss_sums(model: Transformer, batch: TokenBatch, bounds: PolicyLoss) -> dict[str, Tensor]:
    """The un-normalised sum of each term over one micro-batch, from whole logits; none where no weight is set."""
    chosen_BT = chosen_targets(batch)
    if chosen_BT is None:
        return {}
    return _sums_from_whole_logits(model, chosen_states(model, batch, chosen_BT), batch, chosen_BT, bounds)


def _sums_from_whole_logits(
    model: Transformer, hidden_ND: Tensor, batch: TokenBatch, chosen_BT: Tensor, bounds: PolicyLoss
) -> dict[str, Tensor]:
    logprobs_NV = model.logits(hidden_ND).log_softmax(-1)
    logprob_N = logprobs_NV.gather(1, batch.tokens_BT[:, 1:][chosen_BT][:, None])[:, 0]
    ids_NK = teacher_ids(batch, chosen_BT)
    chosen = Chosen(logprob_N, None if ids_NK is None else logprobs_NV.gather(1, ids_NK))
    return dict(loss_terms(batch, chosen_BT, bounds)(slice(None), chosen))


def chosen_targets(batch: TokenBatch) -> Tensor | None:
    """(B, T - 1), True where a term weighs the target; None where none does."""
    weights = [value for name in WEIGHTS.values() if (value := getattr(batch, name)) is not None]
    chosen_BT = torch.stack([value != 0 for value in weights]).any(0)
    return chosen_BT if bool(chosen_BT.any()) else None


def chosen_states(model: Transformer, batch: TokenBatch, chosen_BT: Tensor) -> Tensor:
    """(N, D) final states that predict the chosen targets: logits are made nowhere else."""
    segment_BT = None if batch.segment_BT is None else batch.segment_BT[:, :-1]
    return model.hidden(batch.tokens_BT[:, :-1], segment_BT=segment_BT)[chosen_BT]


def teacher_ids(batch: TokenBatch, chosen_BT: Tensor) -> Tensor | None:
    """(N, K) where distillation weighs a target, None otherwise."""
    if batch.w_kd is None or not bool((batch.w_kd != 0).any()):
        return None
    return _pick(batch, "teacher_ids", chosen_BT)


def loss_terms(batch: TokenBatch, chosen_BT: Tensor, bounds: PolicyLoss) -> Terms:
    """Each term that has a weight, as a function of the log-probabilities of a range of the chosen targets."""
    weights = {name: getattr(batch, field_name) for name, field_name in WEIGHTS.items()}
    on = [name for name, value in weights.items() if value is not None and bool((value != 0).any())]

    def terms(part: slice, chosen: Chosen) -> dict[str, Tensor]:
        def pick(field_name: str) -> Tensor:
            return _pick(batch, field_name, chosen_BT)[part]

        logprob_N = chosen.logprob_N
        sums: dict[str, Tensor] = {}
        if "ce" in on:
            sums["ce"] = -(pick("w_ce") * logprob_N).sum()
        if "rl" in on:
            old_N = logprob_N.detach() if batch.old_logprob is None else pick("old_logprob")
            sums["rl"] = policy_gradient(
                logprob_N, old_N, pick("behaviour_logprob"), pick("advantage"), pick("w_rl"), bounds
            )
        if "kl" in on:
            sums["kl"] = reference_kl(logprob_N, pick("reference_logprob"), pick("w_kl"))
        if "kd" in on:
            assert chosen.teacher_logprob_NK is not None
            sums["kd"] = distillation(chosen.teacher_logprob_NK, pick("teacher_weight"), pick("w_kd"))
        return sums

    return terms


def _pick(batch: TokenBatch, field_name: str, chosen_BT: Tensor) -> Tensor:
    value = getattr(batch, field_name)
    if value is None:
        raise ValueError(f"the batch weighs a loss term that needs `{field_name}`, but the algorithm did not set it")
    return value[chosen_BT]


@torch.inference_mode()
def mean_loss(model: Transformer, batches: Sequence[TokenBatch]) -> float:
    """Cross-entropy in nats a token over `batches`, each token weighted by `w_ce`. Raises ValueError without any."""
    total, weight = 0.0, 0.0
    for batch in batches:
        if bool((batch.w_ce != 0).any()):
            total += loss_of(model, batch, PolicyLoss(), weighted_tokens(batch))[1]["ce"].item()
            weight += batch.w_ce.sum().item()
    if not weight:
        raise ValueError("no token of these batches has a weight, so there is no loss to measure")
    return total / weight
