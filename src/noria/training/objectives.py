"""Losses as pure functions of tensors. Each takes the N chosen target tokens and returns a sum, not yet normalised.

N target tokens with a non-zero weight, B rows, V vocabulary, K teacher draws a token. pi is the policy now, pi_old the
trainer's own at the start of the rollout step, mu the sampler's as recorded; r = pi/pi_old.
Losses over pairs of replies are in `preferences.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from noria.training.preferences import PreferenceLoss

PolicyForm = Literal["ppo", "gspo", "cispo"]
Importance = Literal["truncate", "band", "none"]
KlForm = Literal["k1", "k2", "k3"]


@dataclass(frozen=True)
class PolicyLoss:
    """How the ratio pi/pi_old is bounded, and how the drift between sampler and trainer is corrected.

    form: `ppo` clips each token's ratio (arXiv 1707.06347) to [1 - clip_low, 1 + clip_high], asymmetric as in DAPO
    (arXiv 2503.14476); `gspo` clips the ratio of a whole sequence, its geometric mean (arXiv 2507.18071, eq. 5 to 7;
    its bounds are 3e-4 and 4e-4); `cispo` keeps every token's gradient and caps its ratio at `ratio_cap` as a constant
    (MiniMax-M1, arXiv 2506.13585, eq. 4; ScaleRL, arXiv 2510.13786).
    dual_clip: bounds the surrogate of a negative advantage at dual_clip * A (arXiv 1912.09729, c = 3).
    importance: pi_old/mu is truncated at `importance_cap` (TIS, 2.0 in its authors' runs), or zero outside the band
    [importance_low, importance_cap] (IcePop), or left out.
    stale_limit: a sequence of negative advantage whose mean log(pi_old/pi) exceeds it is left out (off-policy sequence
    masking of DeepSeek-V3.2): pushing down what the policy has already left is where stale rollouts do harm.
    """

    clip_low: float = 0.2
    clip_high: float = 0.28
    importance_cap: float = 2.0
    form: PolicyForm = "ppo"
    ratio_cap: float = 5.0
    dual_clip: float | None = None
    importance: Importance = "truncate"
    importance_low: float = 0.5
    stale_limit: float | None = None

    @property
    def needs_sequences(self) -> bool:
        """Whether one token's loss depends on the other tokens of its row."""
        return self.form == "gspo" or self.stale_limit is not None


@dataclass(frozen=True)
class Objective:
    """How the terms that a batch switches on are formed; a term that no weight switches on costs nothing.

    `temperature` divides the logits of every term: RL trains the policy that was sampled, which at another temperature
    is another one.
    """

    policy: PolicyLoss = field(default_factory=PolicyLoss)
    kl: KlForm = "k3"
    value_clip: float = 0.2
    preference: PreferenceLoss = field(default_factory=PreferenceLoss)
    temperature: float = 1.0


def policy_gradient(
    logprob_N: Tensor,
    old_logprob_N: Tensor,
    behaviour_logprob_N: Tensor,
    advantage_N: Tensor,
    weight_N: Tensor,
    bounds: PolicyLoss,
    row_N: Tensor | None = None,
) -> Tensor:
    """-sum w * rho * surrogate(r, A), rho the correction of pi_old/mu as `bounds` says, without a gradient.

    ppo: min(r A, clip(r, 1 - low, 1 + high) A), with dual clip not below c A where A < 0 (arXiv 1707.06347, eq. 7).
    gspo: the same with r the geometric mean of its row's ratios, and rho likewise. cispo: stopgrad(min(r, cap)) A
    log pi.
    On-policy (old = current) r is exactly 1 and the gradient is that of -A log pi in every form. `row_N` says which row
    (sequence) a token belongs to, where `bounds.needs_sequences`.
    """
    log_ratio_N, log_importance_N = logprob_N - old_logprob_N, old_logprob_N - behaviour_logprob_N
    if bounds.form == "gspo":
        log_ratio_N, log_importance_N = mean_of_row(log_ratio_N, row_N), mean_of_row(log_importance_N, row_N)
    ratio_N = log_ratio_N.exp()
    if bounds.form == "cispo":
        surrogate_N = ratio_N.detach().clamp_max(bounds.ratio_cap) * advantage_N * logprob_N
    else:
        clipped_N = ratio_N.clamp(1.0 - bounds.clip_low, 1.0 + bounds.clip_high)
        surrogate_N = torch.minimum(ratio_N * advantage_N, clipped_N * advantage_N)
        if bounds.dual_clip is not None:
            lowest_N = torch.maximum(surrogate_N, bounds.dual_clip * advantage_N)
            surrogate_N = torch.where(advantage_N < 0, lowest_N, surrogate_N)
    kept_N = weight_N * importance_weight(log_importance_N, bounds)
    if bounds.stale_limit is not None:
        drifted_N = mean_of_row(old_logprob_N - logprob_N.detach(), row_N) > bounds.stale_limit
        kept_N = kept_N * ~(drifted_N & (advantage_N < 0))
    return -(kept_N * surrogate_N).sum()


def importance_weight(log_importance_N: Tensor, bounds: PolicyLoss) -> Tensor:
    """rho: exp(log pi_old - log mu), truncated, kept only inside a band, or 1. Carries no gradient."""
    if bounds.importance == "none":
        return torch.ones_like(log_importance_N)
    importance_N = log_importance_N.exp()
    if bounds.importance == "truncate":
        return importance_N.clamp_max(bounds.importance_cap).detach()
    inside_N = (importance_N >= bounds.importance_low) & (importance_N <= bounds.importance_cap)
    return torch.where(inside_N, importance_N, 0.0).detach()


@torch.no_grad()
def is_clipped(log_ratio_N: Tensor, advantage_N: Tensor, bounds: PolicyLoss, row_N: Tensor | None = None) -> Tensor:
    """Which tokens lose their gradient to a bound (in cispo: whose ratio is capped)."""
    if bounds.form == "gspo":
        log_ratio_N = mean_of_row(log_ratio_N, row_N)
    ratio_N = log_ratio_N.exp()
    if bounds.form == "cispo":
        return ratio_N > bounds.ratio_cap
    too_high_N = (advantage_N > 0) & (ratio_N > 1.0 + bounds.clip_high)
    too_low_N = (advantage_N < 0) & (ratio_N < 1.0 - bounds.clip_low)
    clipped_N = too_high_N | too_low_N
    return clipped_N if bounds.dual_clip is None else clipped_N | ((advantage_N < 0) & (ratio_N > bounds.dual_clip))


def reference_kl(logprob_N: Tensor, reference_logprob_N: Tensor, weight_N: Tensor, form: KlForm = "k3") -> Tensor:
    """sum w * an estimate of KL(pi || reference) from tokens sampled by pi (Schulman 2020), d = log ref - log pi.

    k1 = -d: unbiased, of either sign. Its gradient as a loss is zero in expectation, so it belongs into a reward.
    k2 = d^2/2: biased in value, though its gradient on-policy is that of the KL. k3 = exp(d) - d - 1: unbiased and
    never negative; its gradient is that of the forward KL, close to the KL's where the policies are close.
    """
    difference_N = reference_logprob_N - logprob_N
    if form == "k1":
        return -(weight_N * difference_N).sum()
    if form == "k2":
        return (weight_N * difference_N.square() * 0.5).sum()
    return (weight_N * (difference_N.exp() - difference_N - 1.0)).sum()


def value_loss(value_N: Tensor, old_value_N: Tensor, target_N: Tensor, weight_N: Tensor, clip: float) -> Tensor:
    """sum w/2 * max((v - R)^2, (v_old + clip(v - v_old, -c, c) - R)^2): PPO's value loss, clipped like its ratio
    (as in the code of arXiv 1707.06347; arXiv 2005.12729, section 3)."""
    bounded_N = old_value_N + (value_N - old_value_N).clamp(-clip, clip)
    worse_N = torch.maximum((value_N - target_N).square(), (bounded_N - target_N).square())
    return (weight_N * worse_N).sum() * 0.5


def distillation(logprob_NK: Tensor, teacher_weight_NK: Tensor, weight_N: Tensor) -> Tensor:
    """-sum w * sum_k q_k log p(id_k): cross-entropy to ids drawn from the teacher, `logprob_NK` the student's of them.

    With draws from the teacher's full distribution it is an unbiased estimate of the cross-entropy to it, where keeping
    only the top k is not (random-sampling KD, arXiv 2503.16870).
    """
    return -(weight_N[:, None] * teacher_weight_NK * logprob_NK).sum()


def mean_of_row(value_N: Tensor, row_N: Tensor | None) -> Tensor:
    """For each token the mean of `value_N` over the tokens of its row."""
    assert row_N is not None, "a loss over sequences needs to know which row a token belongs to"
    rows = int(row_N.max()) + 1
    total_B = value_N.new_zeros(rows).index_add(0, row_N, value_N)
    count_B = value_N.new_zeros(rows).index_add(0, row_N, torch.ones_like(value_N))
    return (total_B / count_B)[row_N]
