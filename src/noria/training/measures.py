"""What a step measures of its own losses, without a gradient: how far the policies have drifted, what was clipped,
which reply a pair's model prefers. Sums over one micro-batch, so that they add up over micro-batches and ranks.

N chosen targets, B rows. pi now, pi_old at the start of the rollout step, mu the sampler as recorded.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from noria.training.objectives import Objective, is_clipped
from noria.training.preferences import sum_of_rows

# For each term of the loss the names of its sums; the largest is kept of those that end in _max.
SUMS: Mapping[str, tuple[str, ...]] = {
    "rl": ("clipped", "drift_kl", "drift_kl_max", "importance", "importance_square", "update_kl"),
    "pair": ("right", *(f"{side}_{of}" for side in ("chosen", "rejected") for of in ("rows", "logprob", "ratio"))),
    "score": ("score_right", "chosen_score", "rejected_score"),
    "value": ("value_target", "value_target_square", "value_error", "value_error_square"),
}


@torch.no_grad()
def policy_sums(
    logprob_N: Tensor,
    old_logprob_N: Tensor,
    behaviour_logprob_N: Tensor,
    advantage_N: Tensor,
    row_N: Tensor,
    objective: Objective,
) -> dict[str, Tensor]:
    """Over the N tokens that carry policy gradient.

    drift_kl: with w = pi_old/mu and tokens from mu, E[w log w - w + 1] = KL(pi_old || mu), no term of it negative.
    update_kl: the k3 estimate of KL(pi_old || pi), how far the steps on one batch of rollouts have gone.
    """
    log_importance_N = old_logprob_N - behaviour_logprob_N
    importance_N = log_importance_N.exp()
    drift_N = importance_N * log_importance_N - importance_N + 1.0
    log_ratio_N = logprob_N - old_logprob_N
    return {
        "clipped": is_clipped(log_ratio_N, advantage_N, objective.policy, row_N).float().sum(),
        "drift_kl": drift_N.sum(),
        "drift_kl_max": drift_N.amax(),
        "importance": importance_N.sum(),
        "importance_square": importance_N.square().sum(),
        "update_kl": (log_ratio_N.exp() - log_ratio_N - 1.0).sum(),
    }


@torch.no_grad()
def pair_sums(logprob_N: Tensor, reference_N: Tensor, weight_N: Tensor, row_N: Tensor, rows: int) -> dict[str, Tensor]:
    """Log-probabilities of the chosen and rejected replies (sums over their tokens), their log-ratios to the reference,
    and in how many rows the margin has the right sign."""
    found: dict[str, Tensor] = {}
    for side, mine_N in (("chosen", weight_N > 0), ("rejected", weight_N < 0)):
        found[f"{side}_rows"] = (sum_of_rows(mine_N.float(), row_N, rows) > 0).float().sum()
        found[f"{side}_logprob"] = logprob_N[mine_N].sum()
        found[f"{side}_ratio"] = (logprob_N - reference_N)[mine_N].sum()
    delta_B = sum_of_rows(weight_N * (logprob_N - reference_N), row_N, rows)
    return found | {"right": (delta_B > 0).float().sum()}


@torch.no_grad()
def score_sums(chosen_B: Tensor, rejected_B: Tensor) -> dict[str, Tensor]:
    right = (chosen_B > rejected_B).float().sum()
    return {"score_right": right, "chosen_score": chosen_B.sum(), "rejected_score": rejected_B.sum()}


@torch.no_grad()
def value_sums(value_N: Tensor, target_N: Tensor) -> dict[str, Tensor]:
    error_N = target_N - value_N
    return {
        "value_target": target_N.sum(),
        "value_target_square": target_N.square().sum(),
        "value_error": error_N.sum(),
        "value_error_square": error_N.square().sum(),
    }


def merged(name: str, total: float, part: float) -> float:
    return max(total, part) if name.endswith("_max") else total + part


def metrics(sums: Mapping[str, float], counts: Mapping[str, float], objective: Objective) -> dict[str, float]:
    """What the run reports, from the sums over the whole step. Names: docs/stage5_posttraining.md.

    effective_samples: (sum w)^2 / (n sum w^2), the share of tokens that an importance-weighted mean really averages.
    value_explained: 1 - Var(target - value)/Var(target); 0 where all targets are equal.
    """
    found: dict[str, float] = {}
    if "rl" in counts:
        n, square = counts["rl"], sums["importance_square"]
        found["clip_fraction"] = sums["clipped"] / n
        found["drift_kl"], found["drift_kl_max"] = sums["drift_kl"] / n, sums["drift_kl_max"]
        found["effective_samples"] = sums["importance"] ** 2 / (n * square) if square else 0.0
        found["update_kl"] = sums["update_kl"] / n
    if "pair" in counts:
        found["preference_accuracy"] = sums["right"] / counts["pair"]
        for side in ("chosen", "rejected"):
            if sums[f"{side}_rows"]:  # KTO has steps without one of them
                found[f"{side}_logprob"] = sums[f"{side}_logprob"] / sums[f"{side}_rows"]
                found[f"{side}_reward"] = objective.preference.beta * sums[f"{side}_ratio"] / sums[f"{side}_rows"]
    if "score" in counts:
        n = counts["score"]
        found["preference_accuracy"] = sums["score_right"] / n
        found["chosen_score"], found["rejected_score"] = sums["chosen_score"] / n, sums["rejected_score"] / n
    if "value" in counts:
        n = counts["value"]
        variance = sums["value_target_square"] / n - (sums["value_target"] / n) ** 2
        unexplained = sums["value_error_square"] / n - (sums["value_error"] / n) ** 2
        found["value_explained"] = 1.0 - unexplained / variance if variance > 1e-12 else 0.0
        found["value_error"] = sums["value_error_square"] / n
    return found
