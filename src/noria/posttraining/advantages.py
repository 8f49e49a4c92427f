"""Rewards to advantages: pure functions of numbers, each with its formula and source.

G samples a prompt, T sampled tokens of one trace.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

Advantage = Literal["mean", "std", "batch_std", "rloo", "maxrl", "rank"]


def group_advantages(rewards: Sequence[float | None], form: Advantage = "mean") -> list[float]:
    """A_i from R_i and the graded members of one group of n, mean m.

    mean       R_i - m (DeepSeekMath, arXiv 2402.03300, eq. 3 before its deviation; Dr. GRPO, arXiv 2503.20783)
    std        (R_i - m) / standard deviation of the group (the original GRPO)
    batch_std  as mean; `batch_advantages` divides by the deviation over the batch
    rloo       R_i minus the mean of the others = n/(n - 1) (R_i - m) (arXiv 2402.14740, eq. 8)
    maxrl      (R_i - m) / m: the gradient of log pass rate instead of pass rate (arXiv 2602.02710); needs R >= 0
    rank       2 (rank_i - mean rank) / (n - 1), equal rewards sharing their mean rank: in [-1, 1]; only the
               order counts

    None (a failed grading) gets advantage 0 and takes no part. Equal rewards give zeros.
    """
    graded = [reward for reward in rewards if reward is not None]
    if len(graded) < 2 or max(graded) == min(graded):
        return [0.0] * len(rewards)
    if form == "rank":
        return [0.0 if reward is None else _rank(reward, graded) for reward in rewards]
    centre = statistics.fmean(graded)
    scale = 1.0
    if form == "std":
        scale = statistics.pstdev(graded)
    elif form == "rloo":
        scale = (len(graded) - 1) / len(graded)
    elif form == "maxrl":
        if min(graded) < 0:
            raise ValueError(f"advantage maxrl divides by the mean reward and needs rewards >= 0; got {min(graded)}")
        scale = centre
    return [0.0 if reward is None else (reward - centre) / scale for reward in rewards]


def batch_advantages(groups: Sequence[Sequence[float | None]], form: Advantage) -> list[float]:
    """Advantages of all groups in order. `batch_std` divides all by their deviation over the batch (ScaleRL, arXiv
    2510.13786, section 3.2), so a group of little variance is not blown up as by its own deviation."""
    found = [value for group in groups for value in group_advantages(group, form)]
    if form != "batch_std":
        return found
    graded = [
        value for value, reward in zip(found, (r for group in groups for r in group), strict=True) if reward is not None
    ]
    scale = statistics.pstdev(graded) if graded else 0.0
    return [value / scale for value in found] if scale else found


def has_signal(rewards: Sequence[float | None]) -> bool:
    """Whether the graded members of a group differ at all."""
    graded = [reward for reward in rewards if reward is not None]
    return len(graded) > 1 and max(graded) > min(graded)


def overlong_penalty(tokens: int, most: int, soft: int) -> float:
    """0 up to most - soft sampled tokens, then linear to -1 at `most` (DAPO, arXiv 2503.14476, eq. 13)."""
    return min(0.0, max(-1.0, (most - soft - tokens) / soft))


def generalised_advantages(
    rewards_T: Sequence[float], values_T: Sequence[float], gamma: float = 1.0, lam: float = 1.0
) -> tuple[list[float], list[float]]:
    """(advantages, returns) of one trace's sampled tokens (GAE, arXiv 1506.02438, eq. 16): with V_T = 0 after the last,

        delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lam A_{t+1},   return_t = A_t + V_t.

    With gamma = lam = 1, A_t is the reward still to come minus V_t. Tool tokens are no part: the state after a tool's
    result is that of the next sampled token.
    """
    advantages = [0.0] * len(rewards_T)
    following, next_value = 0.0, 0.0
    for t in reversed(range(len(rewards_T))):
        following = rewards_T[t] + gamma * next_value - values_T[t] + gamma * lam * following
        advantages[t], next_value = following, values_T[t]
    return advantages, [advantage + value for advantage, value in zip(advantages, values_T, strict=True)]


def _rank(reward: float, graded: Sequence[float]) -> float:
    below = sum(other < reward for other in graded)
    above = sum(other > reward for other in graded)
    return (below - above) / (len(graded) - 1)
