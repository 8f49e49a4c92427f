"""One optimiser step in two halves, so that a guard can stand between: measure the gradient, then apply it.

    loss = sum(w_ce * cross_entropy)/n_ce + sum(w_rl * policy_gradient)/n_rl + sum(w_kl * reference_kl)/n_kl
         + sum(w_kd * distillation)/n_kd + sum(w_value * value_error)/n_value + sum(pair losses)/n_pairs

Every n is the number of weighted tokens (of pairs: rows) in the whole step, over all micro-batches and ranks, so
the result depends neither on how a step is cut into micro-batches nor on how it is split over processes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from noria.model import Transformer
from noria.training.batch import TokenBatch
from noria.training.chunked_loss import Chosen, chunked_logprobs, chunked_sums
from noria.training.compute import is_compiled
from noria.training.critic import critic_values, reads_own_states
from noria.training.integrity import checksum
from noria.training.measures import SUMS, merged, metrics
from noria.training.objectives import Objective
from noria.training.optim import MuonAdamW
from noria.training.parallel import ALONE, Ranks, gradient_norm, sum_gradients
from noria.training.shared_prompts import chosen_states
from noria.training.terms import (
    VALUED,
    chosen_targets,
    loss_terms,
    measured_sums,
    needs_sequences,
    teacher_ids,
    terms_on,
    valued_terms,
    weighted_tokens,
)

# Up to here logits are small enough to be made whole, which a fp32 model does.
WHOLE_LOGITS_VOCABULARY = 4096


@dataclass(frozen=True)
class Gradient:
    """What one step measured, equal on every rank; the gradient itself lies in each parameter's `grad`."""

    losses: dict[str, float]
    norm: float
    seconds: tuple[float, ...] = ()  # of each rank's own forward and backward passes
    fingerprint: int = 0  # of this rank's own part, before ranks are summed; 0 for a process alone
    measured: Mapping[str, float] = field(default_factory=dict)  # drift, clipping, margins: `measures.metrics`

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.norm) and all(map(math.isfinite, self.losses.values()))


def measure_gradient(
    model: Transformer, batch: TokenBatch, micro_batch_rows: int, objective: Objective, ranks: Ranks = ALONE
) -> Gradient:
    """Fill `grad` with the gradient of the whole step's loss; `batch` is the whole step on every rank."""
    counts = weighted_tokens(batch)
    totals: dict[str, float] = dict.fromkeys(counts, 0.0)
    measured: dict[str, float] = dict.fromkeys((name for term in counts for name in SUMS.get(term, ())), 0.0)
    model.zero_grad(set_to_none=True)
    started = time.perf_counter()
    for micro in ranks.micro_batches(batch, micro_batch_rows) if counts else []:
        found = compute(model, micro, objective, counts)
        if found.loss is not None:
            found.loss.backward()
        elif ranks.sharded:  # a forward pass gathers weights from all ranks, so each rank needs equally many
            (model.logits(model.hidden(micro.tokens_BT[:1, :1])).sum() * 0.0).backward()
        for name, value in found.sums.items():
            totals[name] += value.item() / counts[name]
        for name, value in found.measured.items():
            measured[name] = merged(name, measured[name], value.item())
    seconds = time.perf_counter() - started
    if ranks.count == 1:
        norm = gradient_norm(model.parameters()).item() if counts else 0.0
        return Gradient(totals, norm, (seconds,), measured=metrics(measured, counts, objective))
    fingerprint = checksum(parameter.grad for parameter in model.parameters())
    if counts:
        sum_gradients(model.parameters(), ranks)
    norm = gradient_norm(model.parameters(), ranks).item() if counts else 0.0
    numbers = [*totals.values(), *measured.values(), seconds, norm]
    shared_RK = ranks.gather(torch.tensor(numbers, dtype=torch.float64))
    losses = dict(zip(totals, shared_RK.sum(0).tolist(), strict=False))
    columns = zip(measured, shared_RK.T[len(totals) :].tolist(), strict=False)
    whole = {name: max(column) if name.endswith("_max") else sum(column) for name, column in columns}
    seconds_R = tuple(shared_RK[:, -2].tolist())
    return Gradient(losses, shared_RK[0, -1].item(), seconds_R, fingerprint, metrics(whole, counts, objective))


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
        **gradient.measured,
        "gradient_norm": gradient.norm,
        "learning_rate": rate,
        "tokens": float(batch.tokens_BT.numel()),
        "skipped": float(skipped),
    }


def loss_of(
    model: Transformer, batch: TokenBatch, objective: Objective, counts: Mapping[str, float]
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """(the sum over terms of each one's sum over its count, to be differentiated; the sums) of one micro-batch.

    Where logits would be large they are made in chunks (`chunked_loss.py`): the same loss, rounded in another order.
    Without a weighted token: (None, {}).
    """
    found = compute(model, batch, objective, counts)
    return found.loss, found.sums


@dataclass(frozen=True)
class Computed:
    """Of one micro-batch: the loss to differentiate, each term's sum, and the sums that are only measured."""

    loss: Tensor | None
    sums: dict[str, Tensor]
    measured: dict[str, Tensor]


def compute(model: Transformer, batch: TokenBatch, objective: Objective, counts: Mapping[str, float]) -> Computed:
    """Everything one micro-batch gives; see `loss_of`."""
    chosen_BT = chosen_targets(batch)
    if chosen_BT is None:
        return Computed(None, {}, {})
    on = terms_on(batch)
    loss = torch.zeros(())
    sums: dict[str, Tensor] = {}
    measured: dict[str, Tensor] = {}
    hidden_ND = None
    if on - VALUED or reads_own_states(model):
        hidden_ND = chosen_states(model, batch, chosen_BT)
    if on - VALUED:
        assert hidden_ND is not None
        loss, sums, logprob_N = _from_logprobs(model, hidden_ND, batch, chosen_BT, objective, counts)
        measured = measured_sums(logprob_N.detach(), batch, chosen_BT, on, objective)
    if on & VALUED:
        value_N = critic_values(model, batch, chosen_BT, hidden_ND)
        found, more = valued_terms(value_N, batch, chosen_BT, on, objective)
        loss = loss + torch.stack([term / counts[name] for name, term in found.items()]).sum()
        sums, measured = sums | found, measured | more
    return Computed(loss, sums, measured)


def _from_logprobs(
    model: Transformer,
    hidden_ND: Tensor,
    batch: TokenBatch,
    chosen_BT: Tensor,
    objective: Objective,
    counts: Mapping[str, float],
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """(loss, sums, log-probability of every chosen target) of the terms that read log-probabilities."""
    if hidden_ND.dtype == torch.float32 and model.config.vocab_size <= WHOLE_LOGITS_VOCABULARY:
        sums, logprob_N = _sums_from_whole_logits(model, hidden_ND, batch, chosen_BT, objective)
        return sum((sums[name] / counts[name] for name in sums), start=torch.zeros(())), sums, logprob_N
    target_N, ids_NK = batch.tokens_BT[:, 1:][chosen_BT], teacher_ids(batch, chosen_BT)
    terms, cap = loss_terms(batch, chosen_BT, objective), model.config.logit_soft_cap
    compiled = is_compiled(model)
    if not needs_sequences(batch, objective):
        out_N = torch.empty(len(target_N), device=hidden_ND.device)
        loss, sums = chunked_sums(
            hidden_ND,
            model.head.weight,
            target_N,
            ids_NK,
            terms,
            counts,
            cap,
            compiled=compiled,
            out_N=out_N,
            temperature=objective.temperature,
        )
        return loss, sums, out_N
    wanted_NK = target_N[:, None] if ids_NK is None else torch.cat([target_N[:, None], ids_NK], 1)
    logprob_NK = chunked_logprobs(
        hidden_ND, model.head.weight, wanted_NK, cap, compiled=compiled, temperature=objective.temperature
    )
    chosen = Chosen(logprob_NK[:, 0], None if ids_NK is None else logprob_NK[:, 1:])
    sums = dict(terms(slice(None), chosen))
    return torch.stack([term / counts[name] for name, term in sums.items()]).sum(), sums, chosen.logprob_N


def loss_sums(model: Transformer, batch: TokenBatch, objective: Objective) -> dict[str, Tensor]:
    """The un-normalised sum of each term over one micro-batch, from whole logits; none where no weight is set."""
    chosen_BT = chosen_targets(batch)
    if chosen_BT is None:
        return {}
    return _sums_from_whole_logits(model, chosen_states(model, batch, chosen_BT), batch, chosen_BT, objective)[0]


def _sums_from_whole_logits(
    model: Transformer, hidden_ND: Tensor, batch: TokenBatch, chosen_BT: Tensor, objective: Objective
) -> tuple[dict[str, Tensor], Tensor]:
    logprobs_NV = _logprobs(model, hidden_ND, objective.temperature)
    logprob_N = logprobs_NV.gather(1, batch.tokens_BT[:, 1:][chosen_BT][:, None])[:, 0]
    ids_NK = teacher_ids(batch, chosen_BT)
    chosen = Chosen(logprob_N, None if ids_NK is None else logprobs_NV.gather(1, ids_NK))
    return dict(loss_terms(batch, chosen_BT, objective)(slice(None), chosen)), logprob_N


def _logprobs(model: Transformer, hidden_ND: Tensor, temperature: float) -> Tensor:
    logits_NV = model.logits(hidden_ND)
    return (logits_NV if temperature == 1.0 else logits_NV / temperature).log_softmax(-1)


@torch.no_grad()
def target_logprobs(model: Transformer, batch: TokenBatch, rows: int = 64, temperature: float = 1.0) -> Tensor:
    """(B, T - 1) log-probabilities of the weighted targets, 0 elsewhere: the trainer's own, by the path of its loss."""
    found_BT = torch.zeros(batch.w_ce.shape)
    for start in range(0, len(found_BT), rows):
        micro = batch.rows(start, start + rows).trimmed()
        chosen_BT = chosen_targets(micro)
        if chosen_BT is None:
            continue
        hidden_ND, target_N = chosen_states(model, micro, chosen_BT), micro.tokens_BT[:, 1:][chosen_BT]
        if hidden_ND.dtype == torch.float32 and model.config.vocab_size <= WHOLE_LOGITS_VOCABULARY:
            logprob_N = _logprobs(model, hidden_ND, temperature).gather(1, target_N[:, None])[:, 0]
        else:
            cap = model.config.logit_soft_cap
            head_VD = model.head.weight
            logprob_N = chunked_logprobs(hidden_ND, head_VD, target_N[:, None], cap, temperature=temperature)[:, 0]
        found_BT[start : start + rows, : chosen_BT.shape[1]][chosen_BT] = logprob_N
    return found_BT


@torch.inference_mode()
def mean_loss(model: Transformer, batches: Sequence[TokenBatch]) -> float:
    """Cross-entropy in nats a token over `batches`, each token weighted by `w_ce`. Raises ValueError without any."""
    total, weight = 0.0, 0.0
    for batch in batches:
        if bool((batch.w_ce != 0).any()):
            total += loss_of(model, batch, Objective(), weighted_tokens(batch))[1]["ce"].item()
            weight += batch.w_ce.sum().item()
    if not weight:
        raise ValueError("no token of these batches has a weight, so there is no loss to measure")
    return total / weight
