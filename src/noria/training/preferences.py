"""Losses over pairs of replies, and over single replies called good or bad: pure functions of one number a row.

A row of a TokenBatch is one pair, chosen and rejected as two segments (or one reply): so pairs stay whole, however a
step is cut into micro-batches or spread over ranks. `w_pair` is +1 on the chosen's tokens and -1 on the rejected's
(over their lengths where lengths are normalised), so a row's sum of w_pair * log-ratio is the margin

    Delta_b = log pi(chosen)/ref(chosen) - log pi(rejected)/ref(rejected).

B rows, N chosen target tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

PreferenceForm = Literal["dpo", "ipo", "simpo", "kto"]


@dataclass(frozen=True)
class PreferenceLoss:
    """dpo: -log sigmoid(beta Delta) (arXiv 2305.18290, eq. 7); with `label_smoothing` e it is cDPO (Mitchell 2023):
    labels that are wrong with probability e. ipo: (Delta - 1/(2 beta))^2 (arXiv 2310.12036, eq. 17).
    simpo: -log sigmoid(beta Delta - margin), Delta of length-normalised log-probabilities without a reference
    (arXiv 2405.14734, eq. 6). kto: see `kto_loss`. `centring` weighs (r_c + r_r)^2 of a reward model's scores.
    """

    form: PreferenceForm = "dpo"
    beta: float = 0.1
    label_smoothing: float = 0.0
    margin: float = 0.0
    centring: float = 0.0
    undesirable_weight: float = 1.0

    @property
    def needs_reference(self) -> bool:
        return self.form != "simpo"


def preference_losses(delta_B: Tensor, loss: PreferenceLoss) -> Tensor:
    """(B,) of dpo, cdpo, ipo or simpo, from the margins."""
    if loss.form == "ipo":
        return (delta_B - 1.0 / (2.0 * loss.beta)).square()
    logit_B = loss.beta * delta_B - (loss.margin if loss.form == "simpo" else 0.0)
    return -(1.0 - loss.label_smoothing) * logsigmoid(logit_B) - loss.label_smoothing * logsigmoid(-logit_B)


def kto_losses(delta_B: Tensor, is_good_B: Tensor, reference_point_B: Tensor, loss: PreferenceLoss) -> Tensor:
    """w (1 - sigmoid(beta (s Delta' - s z))), s = +1 for a good reply and -1 for a bad one (arXiv 2402.01306, eq. 8).

    `delta_B` is s Delta', as the signs of w_pair make it. z, the reference point, estimates KL(pi || ref) from
    mismatched replies and carries no gradient. w is 1 for good replies and `undesirable_weight` for bad ones.
    """
    sign_B = torch.where(is_good_B, 1.0, -1.0)
    weight_B = torch.where(is_good_B, 1.0, loss.undesirable_weight)
    return weight_B * (1.0 - torch.sigmoid(loss.beta * (delta_B - sign_B * reference_point_B)))


def reward_model_losses(chosen_B: Tensor, rejected_B: Tensor, loss: PreferenceLoss) -> Tensor:
    """-log sigmoid(r_c - r_r - m) + lambda (r_c + r_r)^2: Bradley-Terry with a margin (Llama 2, arXiv 2307.09288,
    eq. 2) and centring, which fixes the constant that the first term leaves free (arXiv 2312.09244, section 2.1)."""
    centring_B = loss.centring * (chosen_B + rejected_B).square()
    return -logsigmoid(chosen_B - rejected_B - loss.margin) + centring_B


def sum_of_rows(value_N: Tensor, row_N: Tensor, rows: int) -> Tensor:
    """(B,) sums of tokens by row."""
    return value_N.new_zeros(rows).index_add(0, row_N, value_N)
