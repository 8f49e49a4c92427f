"""Losses as pure functions of tensors. Each takes the N chosen target tokens and returns a sum, not yet normalised.

N target tokens with a non-zero weight, V vocabulary, K teacher draws a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PolicyLoss:
    """How the ratio pi/pi_old is bounded. Asymmetric clipping is DAPO's (arXiv 2503.14476); `importance_cap` truncates
    the correction for the drift between engine and trainer (TIS, 2.0 in its authors' runs)."""

    clip_low: float = 0.2
    clip_high: float = 0.28
    importance_cap: float = 2.0


def policy_gradient(
    logprob_N: Tensor,
    old_logprob_N: Tensor,
    behaviour_logprob_N: Tensor,
    advantage_N: Tensor,
    weight_N: Tensor,
    bounds: PolicyLoss,
) -> Tensor:
    """-sum w * rho * min(r A, clip(r, 1 - low, 1 + high) A), r = pi/pi_old, rho = min(pi_old/mu, cap).

    PPO's clipped surrogate (arXiv 1707.06347, eq. 7) with truncated importance sampling. On-policy (old = current) r is
    exactly 1 and the gradient is that of -A log pi.
    """
    ratio_N = (logprob_N - old_logprob_N).exp()
    clipped_N = ratio_N.clamp(1.0 - bounds.clip_low, 1.0 + bounds.clip_high)
    importance_N = (old_logprob_N - behaviour_logprob_N).exp().clamp_max(bounds.importance_cap).detach()
    return -(weight_N * importance_N * torch.minimum(ratio_N * advantage_N, clipped_N * advantage_N)).sum()


def reference_kl(logprob_N: Tensor, reference_logprob_N: Tensor, weight_N: Tensor) -> Tensor:
    """sum w * (exp(d) - d - 1), d = log ref - log pi: the non-negative, unbiased k3 estimate (Schulman 2020)."""
    difference_N = reference_logprob_N - logprob_N
    return (weight_N * (difference_N.exp() - difference_N - 1.0)).sum()


def distillation(logprob_NK: Tensor, teacher_weight_NK: Tensor, weight_N: Tensor) -> Tensor:
    """-sum w * sum_k q_k log p(id_k): cross-entropy to ids drawn from the teacher, `logprob_NK` the student's of them.

    With draws from the teacher's full distribution it is an unbiased estimate of the cross-entropy to it, where keeping
    only the top k is not (random-sampling KD, arXiv 2503.16870).
    """
    return -(weight_N[:, None] * teacher_weight_NK * logprob_NK).sum()
