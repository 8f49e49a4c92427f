"""The terms of the loss that a batch's weights switch on, each from the field that it needs and its pure loss.

    ce, rl, kl, kd     sums over weighted target tokens
    pair, score        sums over rows, each a pair of replies: of log-probabilities, or of a reward model's scores
    value              a critic's error over weighted target tokens

N chosen targets (those that any term weighs), B rows, T positions, K teacher draws a token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from noria.training.batch import TokenBatch
from noria.training.chunked_loss import Chosen, Terms
from noria.training.measures import pair_sums, policy_sums, score_sums, value_sums
from noria.training.objectives import Objective, distillation, policy_gradient, reference_kl, value_loss
from noria.training.preferences import (
    PreferenceLoss,
    kto_losses,
    preference_losses,
    reward_model_losses,
    sum_of_rows,
)

WEIGHTS = {
    "ce": "w_ce",
    "rl": "w_rl",
    "kl": "w_kl",
    "kd": "w_kd",
    "pair": "w_pair",
    "score": "w_score",
    "value": "w_value",
}
PAIRED = {"pair", "score"}  # counted in rows
VALUED = {"score", "value"}  # read a critic instead of log-probabilities


def weighted_tokens(batch: TokenBatch) -> dict[str, float]:
    """For each term of the loss that is switched on, how many target tokens (of pairs: rows) carry a weight."""
    counts = {}
    for name, field_name in WEIGHTS.items():
        weights = getattr(batch, field_name)
        if weights is None:
            continue
        weighted = weights != 0
        count = int((weighted.any(1) if name in PAIRED else weighted).sum())
        if count:
            counts[name] = float(count)
    return counts


def terms_on(batch: TokenBatch) -> set[str]:
    """The terms of the loss that have a weight."""
    weights = {name: getattr(batch, field_name) for name, field_name in WEIGHTS.items()}
    return {name for name, value in weights.items() if value is not None and bool((value != 0).any())}


def needs_sequences(batch: TokenBatch, objective: Objective) -> bool:
    """Whether a token's slope depends on the rest of its row, so that no chunk can be finished alone."""
    on = terms_on(batch)
    return "pair" in on or ("rl" in on and objective.policy.needs_sequences)


def chosen_targets(batch: TokenBatch) -> Tensor | None:
    """(B, T - 1), True where a term weighs the target; None where none does."""
    weights = [value for name in WEIGHTS.values() if (value := getattr(batch, name)) is not None]
    chosen_BT = torch.stack([value != 0 for value in weights]).any(0)
    return chosen_BT if bool(chosen_BT.any()) else None


def teacher_ids(batch: TokenBatch, chosen_BT: Tensor) -> Tensor | None:
    """(N, K) where distillation weighs a target, None otherwise."""
    if batch.w_kd is None or not bool((batch.w_kd != 0).any()):
        return None
    return _pick(batch, "teacher_ids", chosen_BT)


def loss_terms(batch: TokenBatch, chosen_BT: Tensor, objective: Objective) -> Terms:
    """Each term that has a weight, as a function of the log-probabilities of a range of the chosen targets."""
    on = terms_on(batch)
    row_N = chosen_BT.nonzero()[:, 0]

    def terms(part: slice, chosen: Chosen) -> dict[str, Tensor]:
        def pick(field_name: str) -> Tensor:
            return _pick(batch, field_name, chosen_BT)[part]

        logprob_N = chosen.logprob_N
        sums: dict[str, Tensor] = {}
        if "ce" in on:
            sums["ce"] = -(pick("w_ce") * logprob_N).sum()
        if "rl" in on:
            old_N = logprob_N.detach() if batch.old_logprob is None else pick("old_logprob")
            behaviour_N, advantage_N, weight_N = pick("behaviour_logprob"), pick("advantage"), pick("w_rl")
            rows = None
            if objective.policy.needs_sequences:  # means over a row are of its sampled tokens alone
                mine_N = weight_N != 0
                picked = (logprob_N, old_N, behaviour_N, advantage_N, weight_N, row_N)
                logprob_N, old_N, behaviour_N, advantage_N, weight_N, rows = (value[mine_N] for value in picked)
            sums["rl"] = policy_gradient(logprob_N, old_N, behaviour_N, advantage_N, weight_N, objective.policy, rows)
            logprob_N = chosen.logprob_N
        if "kl" in on:
            sums["kl"] = reference_kl(logprob_N, pick("reference_logprob"), pick("w_kl"), objective.kl)
        if "kd" in on:
            assert chosen.teacher_logprob_NK is not None
            sums["kd"] = distillation(chosen.teacher_logprob_NK, pick("teacher_weight"), pick("w_kd"))
        if "pair" in on:
            sums["pair"] = pair_loss(logprob_N, batch, chosen_BT, row_N, objective.preference)
        return sums

    return terms


def pair_loss(
    logprob_N: Tensor, batch: TokenBatch, chosen_BT: Tensor, row_N: Tensor, preference: PreferenceLoss
) -> Tensor:
    """The sum over the rows that have a signed weight; see `preferences.py`."""
    weight_N = _pick(batch, "w_pair", chosen_BT)
    assert batch.w_pair is not None
    paired_B = (batch.w_pair != 0).any(1)
    ratio_N = logprob_N - _pick(batch, "reference_logprob", chosen_BT) if preference.needs_reference else logprob_N
    delta_B = sum_of_rows(weight_N * ratio_N, row_N, len(chosen_BT))[paired_B]
    if preference.form != "kto":
        return preference_losses(delta_B, preference).sum()
    if batch.reference_point is None:
        raise ValueError("KTO needs `reference_point`, but the algorithm did not set it")
    is_good_B = (batch.w_pair > 0).any(1)[paired_B]
    return kto_losses(delta_B, is_good_B, batch.reference_point[paired_B, 0], preference).sum()


def valued_terms(
    value_N: Tensor, batch: TokenBatch, chosen_BT: Tensor, on: set[str], objective: Objective
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(sums of the terms that read the critic, what is measured of them)."""
    found: dict[str, Tensor] = {}
    measured: dict[str, Tensor] = {}
    if "value" in on:
        weight_N, target_N = _pick(batch, "w_value", chosen_BT), _pick(batch, "value_target", chosen_BT)
        old_N = _pick(batch, "old_value", chosen_BT)
        found["value"] = value_loss(value_N, old_N, target_N, weight_N, objective.value_clip)
        measured |= value_sums(value_N[weight_N != 0], target_N[weight_N != 0])
    if "score" in on:
        assert batch.w_score is not None
        weight_N, row_N = _pick(batch, "w_score", chosen_BT), chosen_BT.nonzero()[:, 0]
        paired_B = (batch.w_score != 0).any(1)
        chosen_B = sum_of_rows(weight_N.clamp_min(0.0) * value_N, row_N, len(chosen_BT))[paired_B]
        rejected_B = sum_of_rows(weight_N.clamp_max(0.0).abs() * value_N, row_N, len(chosen_BT))[paired_B]
        found["score"] = reward_model_losses(chosen_B, rejected_B, objective.preference).sum()
        measured |= score_sums(chosen_B, rejected_B)
    return found, measured


def measured_sums(
    logprob_N: Tensor, batch: TokenBatch, chosen_BT: Tensor, on: set[str], objective: Objective
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    row_N = chosen_BT.nonzero()[:, 0]
    if "rl" in on:
        mine_N = _pick(batch, "w_rl", chosen_BT) != 0
        old_N = logprob_N if batch.old_logprob is None else batch.old_logprob[chosen_BT]
        behaviour_N, advantage_N = _pick(batch, "behaviour_logprob", chosen_BT), _pick(batch, "advantage", chosen_BT)
        found |= policy_sums(
            logprob_N[mine_N], old_N[mine_N], behaviour_N[mine_N], advantage_N[mine_N], row_N[mine_N], objective
        )
    if "pair" in on:
        weight_N = _pick(batch, "w_pair", chosen_BT)
        reference_N = torch.zeros_like(logprob_N)
        if objective.preference.needs_reference:
            reference_N = _pick(batch, "reference_logprob", chosen_BT)
        found |= pair_sums(logprob_N, reference_N, weight_N, row_N, len(chosen_BT))
    return found


def _pick(batch: TokenBatch, field_name: str, chosen_BT: Tensor) -> Tensor:
    value = getattr(batch, field_name)
    if value is None:
        raise ValueError(f"the batch weighs a loss term that needs `{field_name}`, but the algorithm did not set it")
    return value[chosen_BT]
