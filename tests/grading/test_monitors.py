"""Monitors against references (scipy) and against the failures that they exist to show."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from noria.evals.statistics import pass_at_k
from noria.grading import monitors
from noria.types import GraderRef, Message, Node, Score, Trace

REF = GraderRef("g", "1")


def scored(*values: float | None, **components: float) -> list[Score]:
    return [
        Score("failed", REF, reason="crash") if value is None else Score("graded", REF, value, components=components)
        for value in values
    ]


def trace(outcome: str, reply: str, **facts: float) -> Trace:
    return Trace("r", "t", (Node((), Message("assistant", reply)),), 0, "none", outcome, facts)


def test_gap_is_paired_and_leaves_failed_gradings_out():
    report = monitors.gap(scored(1, 1, 1, None, 0), scored(1, 0, 0, 1, None))
    assert report["n"] == 3 and report["proxy"] == 1.0 and report["gold"] == pytest.approx(1 / 3)
    assert report["gap"] == pytest.approx(2 / 3) and report["proxy_only"] == pytest.approx(2 / 3)
    assert report["standard_error"] == pytest.approx(np.std([0, 1, 1], ddof=1) / math.sqrt(3))
    assert math.isnan(report["rank_correlation"]), "a proxy that is always 1 ranks nothing"


def test_gap_of_nothing_is_unknown_and_unpaired_scores_are_refused():
    assert math.isnan(monitors.gap(scored(None), scored(1))["gap"])
    with pytest.raises(ValueError, match="same traces"):
        monitors.gap(scored(1), scored(1, 0))


def test_rank_correlation_equals_scipy_with_ties():
    draw = np.random.default_rng(0)
    left, right = draw.integers(0, 5, 50).astype(float), draw.integers(0, 5, 50).astype(float)
    assert monitors.rank_correlation(left, right) == pytest.approx(stats.spearmanr(left, right).statistic)


def test_kl_estimates_match_the_exact_divergence():
    draw = np.random.default_rng(1)
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])
    tokens = draw.choice(3, 200_000, p=p)
    report = monitors.kl(np.log(p[tokens]), np.log(q[tokens]))
    exact = float((p * np.log(p / q)).sum())
    assert report["k1"] == pytest.approx(exact, abs=0.003) and report["k3"] == pytest.approx(exact, abs=0.003)
    assert report["max_abs"] == pytest.approx(np.abs(np.log(p / q)).max())
    assert monitors.kl(np.log(p), np.log(p)) == {"k1": 0.0, "k3": 0.0, "max_abs": 0.0}


def test_entropy_is_minus_the_mean_logprob_over_tokens():
    assert monitors.entropy([[-1.0, -3.0], [-2.0]]) == pytest.approx(2.0)
    assert math.isnan(monitors.entropy([]))


def test_lengths_are_split_by_correctness():
    report = monitors.lengths([10, 20, 100], [False, False, True], [True, True, False])
    assert report["correct_mean"] == 15 and report["wrong_mean"] == 100 and report["wrong_truncated"] == 1.0
    assert math.isnan(monitors.lengths([1], [False], [True])["wrong_mean"])


def test_distinct_n_falls_as_replies_collapse():
    assert monitors.distinct_n([[1, 2, 3, 4]]) == 1.0
    assert monitors.distinct_n([[1, 2]] * 10) == 0.1
    assert math.isnan(monitors.distinct_n([[1]]))


def test_zero_variance_groups_are_counted_and_ungraded_ones_are_not():
    assert monitors.zero_variance_share([scored(1, 1), scored(0, 1), scored(0, None), scored(None)]) == pytest.approx(
        2 / 3
    )


def test_pass_at_k_matches_the_combinatorial_formula():
    groups = [scored(*([1] * correct + [0] * (8 - correct))) for correct in range(9)]
    for k in (1, 2, 8):
        expected = np.mean([pass_at_k(8, correct, k) for correct in range(9)])
        assert monitors.solved_at_k(groups, k) == pytest.approx(expected)
    assert math.isnan(monitors.solved_at_k(groups, 9))


def test_invalid_and_abstaining_traces_stay_in_the_denominator():
    traces = [trace("finished", "a"), trace("finished", "b", invalid_calls=2), trace("truncated", "<think>x")]
    rates = monitors.outcome_rates(traces)
    assert rates["abstained"] == pytest.approx(1 / 3) and rates["invalid_calls"] == pytest.approx(1 / 3)
    assert rates["finished"] == pytest.approx(2 / 3)


def test_component_shares_sum_to_one():
    scores = scored(1, 0, accuracy=1.0, format=0.5)
    assert monitors.components(scores) == {"accuracy": 1.0, "format": 0.5}
    shares = monitors.component_shares(scores, {"accuracy": 1.0, "format": 2.0, "absent": 1.0})
    assert shares == {"accuracy": 0.5, "format": 0.5, "absent": 0.0}


def test_language_mix_sees_another_script():
    assert monitors.language_mix(["plain text, é"]) == 0.0
    assert monitors.language_mix(["答え ab"]) == pytest.approx(0.5)


def test_any_pass_of_a_canary_is_reported_and_a_failed_grading_is_none():
    scores = scored(1.0, 0.0, None, 1.0)
    assert monitors.canary_passes(scores, ["c1", "c2", "c3", "normal"], frozenset({"c1", "c2", "c3"})) == ["c1"]


def test_confusion_counts_failures_apart():
    counts = monitors.confusion(scored(1, 0, None, 1, 0.5, None), [True, True, True, False, False, False])
    assert counts == {
        "good_accepted": 1,
        "good_rejected": 1,
        "good_failed": 1,
        "bad_accepted": 1,
        "bad_rejected": 1,
        "bad_failed": 1,
    }
