"""Monitors of the reward: pure functions over scores, texts and token statistics, cheap enough for every RL step.

A held-out grader is the primary signal (Gao et al. 2022, arXiv 2210.10760: a KL penalty does not move the frontier
between training reward and true quality). KL, entropy and length are diagnostics after the fact, never a proof.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from noria.grading.grader import rewards
from noria.types import Score, Trace


def gap(proxy: Sequence[Score], gold: Sequence[Score]) -> dict[str, float]:
    """How far the training grader (proxy) and the held-out one (gold) are apart on the same traces.

    `gap` is mean(proxy - gold) over traces that both graded; `standard_error` is of that paired mean;
    `rank_correlation` is Spearman's (average ranks for ties; NaN where either is constant); `proxy_only` is the share
    that only the proxy accepts (value >= 1): candidates for a hack.
    """
    if len(proxy) != len(gold):
        raise ValueError(f"{len(proxy)} proxy scores for {len(gold)} gold scores: grade the same traces with both")
    (proxy_values, proxy_ok), (gold_values, gold_ok) = rewards(proxy), rewards(gold)
    both = proxy_ok & gold_ok
    left, right = proxy_values[both], gold_values[both]
    n = len(left)
    nothing = float("nan")
    difference = left - right
    return {
        "n": float(n),
        "proxy": float(left.mean()) if n else nothing,
        "gold": float(right.mean()) if n else nothing,
        "gap": float(difference.mean()) if n else nothing,
        "standard_error": float(difference.std(ddof=1) / np.sqrt(n)) if n > 1 else nothing,
        "rank_correlation": rank_correlation(left, right),
        "proxy_only": float(((left >= 1) & (right < 1)).mean()) if n else nothing,
    }


def rank_correlation(left: np.ndarray, right: np.ndarray) -> float:
    """Spearman's rho: Pearson's correlation of average ranks. NaN for fewer than two values or a constant side."""
    if len(left) < 2 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return float("nan")
    return float(np.corrcoef(_ranks(left), _ranks(right))[0, 1])


def components(scores: Sequence[Score]) -> dict[str, float]:
    """The mean of each named component over the graded scores that have it: which part of the reward moves."""
    sums: dict[str, list[float]] = {}
    for score in scores:
        for name, value in score.components.items():
            sums.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in sorted(sums.items())}


def component_shares(scores: Sequence[Score], weights: Mapping[str, float]) -> dict[str, float]:
    """Each weighted component's share of the summed absolute reward; a share near 1 means that one part rules."""
    means = {name: abs(weight) * abs(components(scores).get(name, 0.0)) for name, weight in weights.items()}
    total = sum(means.values())
    return {name: value / total if total else 0.0 for name, value in means.items()}


def entropy(logprobs: Sequence[Sequence[float]]) -> float:
    """Nats a token: the Monte-Carlo estimate -mean log p(sampled) over all sampled tokens of all traces."""
    flat = np.concatenate([np.asarray(row, dtype=np.float64) for row in logprobs]) if len(logprobs) else np.zeros(0)
    return float(-flat.mean()) if flat.size else float("nan")


def kl(policy_logprobs: np.ndarray, reference_logprobs: np.ndarray) -> dict[str, float]:
    """KL(policy || reference) a token from tokens that the policy sampled (Schulman 2020, approximating KL).

    k1 = mean(log p - log q), unbiased; k3 = mean(q/p - 1 - log(q/p)), unbiased, never negative, of lower variance; and
    max_abs, the largest |log p - log q|, which shows trainer and sampler drifting apart before the mean does.
    """
    if policy_logprobs.shape != reference_logprobs.shape:
        raise ValueError(f"shapes differ: {policy_logprobs.shape} and {reference_logprobs.shape}")
    if policy_logprobs.size == 0:
        return {"k1": float("nan"), "k3": float("nan"), "max_abs": float("nan")}
    log_ratio = np.asarray(reference_logprobs, np.float64) - np.asarray(policy_logprobs, np.float64)
    k3 = np.expm1(log_ratio) - log_ratio
    return {"k1": float(-log_ratio.mean()), "k3": float(k3.mean()), "max_abs": float(np.abs(log_ratio).max())}


def lengths(token_counts: Sequence[int], truncated: Sequence[bool], correct: Sequence[bool]) -> dict[str, float]:
    """Mean and 95th percentile of sampled tokens and the truncated share, for all, right and wrong replies.

    Wrong replies that grow while right ones do not is the length bias of a per-sequence mean loss.
    """
    counts, cut, right = np.asarray(token_counts, float), np.asarray(truncated, bool), np.asarray(correct, bool)
    report = {}
    for name, chosen in (("all", np.ones(len(counts), bool)), ("correct", right), ("wrong", ~right)):
        some = bool(chosen.any())
        report[f"{name}_mean"] = float(counts[chosen].mean()) if some else float("nan")
        report[f"{name}_p95"] = float(np.percentile(counts[chosen], 95)) if some else float("nan")
        report[f"{name}_truncated"] = float(cut[chosen].mean()) if some else float("nan")
    return report


def distinct_n(sequences: Sequence[Sequence[int]], n: int = 2) -> float:
    """Distinct n-grams over all n-grams (Li et al. 2016, arXiv 1510.03055): towards 0 as a policy collapses."""
    grams = Counter(tuple(row[i : i + n]) for row in sequences for i in range(len(row) - n + 1))
    total = sum(grams.values())
    return len(grams) / total if total else float("nan")


def zero_variance_share(groups: Sequence[Sequence[Score]]) -> float:
    """The share of groups whose graded values are all equal: they give no gradient. Groups without any are left out."""
    spreads = [np.ptp(values[mask]) for values, mask in map(rewards, groups) if mask.any()]
    return float(np.mean([spread == 0 for spread in spreads])) if spreads else float("nan")


def solved_at_k(groups: Sequence[Sequence[Score]], k: int) -> float:
    """Mean over prompts of the unbiased pass@k = 1 - C(n-c, k)/C(n, k) (Chen et al. 2021, arXiv 2107.03374, eq. 1).

    n graded samples of a prompt, c of them of value >= 1. Prompts with fewer than k graded samples are left out.
    pass@1 rising while pass@k falls: the policy sharpens what it knew and explores less.
    """
    chances = []
    for values, mask in map(rewards, groups):
        n, c = int(mask.sum()), int((values[mask] >= 1).sum())
        if n >= k:
            chances.append(1.0 - float(np.prod([1.0 - k / j for j in range(n - c + 1, n + 1)])))
    return float(np.mean(chances)) if chances else float("nan")


def outcome_rates(traces: Sequence[Trace]) -> dict[str, float]:
    """Shares of all traces: each outcome, `abstained` (no answer at all), `invalid_calls` (any invalid tool call).

    Invalid and abstaining traces stay in the denominator: dropping them once taught a model to emit invalid calls on
    hard tasks (Composer 2, arXiv 2603.24477).
    """
    n = len(traces)
    if not n:
        return {}
    rates = {outcome: count / n for outcome, count in sorted(Counter(trace.outcome for trace in traces).items())}
    rates["abstained"] = sum(not trace.answer for trace in traces) / n
    rates["invalid_calls"] = sum(trace.facts.get("invalid_calls", 0) > 0 for trace in traces) / n
    return rates


def language_mix(texts: Sequence[str]) -> float:
    """Mean share of letters outside the Latin script, a cheap alarm for reasoning that changes language."""
    shares = []
    for text in texts:
        letters = [char for char in text if char.isalpha()]
        if letters:
            shares.append(sum(ord(char) > 0x24F for char in letters) / len(letters))
    return float(np.mean(shares)) if shares else 0.0


def canary_passes(scores: Sequence[Score], task_ids: Sequence[str], canaries: frozenset[str]) -> list[str]:
    """Ids of canary tasks (they can't be solved) that scored above 0. Any such pass is a hack or a broken grader."""
    pairs = zip(task_ids, scores, strict=True)
    return sorted({task for task, score in pairs if task in canaries and score.value is not None and score.value > 0})


def confusion(scores: Sequence[Score], good: Sequence[bool]) -> dict[str, int]:
    """Counts of a grader on answers known to be good or bad: accepted (value >= 1), rejected, or failed to grade."""
    counts = dict.fromkeys(("good_accepted", "good_rejected", "good_failed"), 0)
    counts |= dict.fromkeys(("bad_accepted", "bad_rejected", "bad_failed"), 0)
    for score, is_good in zip(scores, good, strict=True):
        verdict = "failed" if score.value is None else "accepted" if score.value >= 1 else "rejected"
        counts[f"{'good' if is_good else 'bad'}_{verdict}"] += 1
    return counts


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2.0)[inverse]
