"""Statistics against scipy, against brute force, and by the coverage of simulated intervals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from noria.evals import statistics as s


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (3, 10), (150, 300), (1, 1)])
def test_wilson_equals_scipy(successes: int, n: int):
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    found = s.wilson(successes, n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.low <= found.estimate <= found.high


def test_wilson_of_nothing_is_everything_and_impossible_counts_are_refused():
    empty = s.wilson(0, 0)
    assert (empty.low, empty.high, empty.n) == (0.0, 1.0, 0) and math.isnan(empty.estimate)
    assert empty.as_json() == {"estimate": None, "low": 0.0, "high": 1.0, "n": 0}
    with pytest.raises(ValueError, match="3 successes of 2"):
        s.wilson(3, 2)


def test_wilson_covers_the_truth():
    share = s.coverage(lambda draw: s.wilson(int(draw.binomial(60, 0.1)), 60), 0.1, 3000)
    assert 0.93 < share < 0.98


def test_mean_interval_equals_scipy():
    x = np.random.default_rng(0).normal(3, 2, 25)
    expected = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    found = s.mean_interval(x)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_one_value_bounds_nothing():
    assert s.mean_interval([0.5]).as_json() == {"estimate": 0.5, "low": None, "high": None, "n": 1}


def test_paired_difference_equals_scipy_and_beats_the_unpaired_one():
    draw = np.random.default_rng(1)
    difficulty = draw.normal(0, 1, 200)
    old, new = difficulty + draw.normal(0, 0.2, 200), difficulty + 0.1 + draw.normal(0, 0.2, 200)
    expected = stats.ttest_rel(new, old).confidence_interval(0.95)
    found = s.paired_difference(new, old)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert s.superior(found) and stats.ttest_ind(new, old).pvalue > 0.05
    with pytest.raises(ValueError, match="same items"):
        s.paired_difference([1.0], [1.0, 2.0])


def test_cluster_bootstrap_without_clusters_is_near_the_t_interval():
    x = np.random.default_rng(2).normal(0, 1, 300)
    boot, exact = s.cluster_bootstrap(x), s.mean_interval(x)
    assert (boot.low, boot.high) == pytest.approx((exact.low, exact.high), abs=0.02)


def test_cluster_bootstrap_enumerated_exactly_for_two_clusters():
    # Resamples of two clusters: both a (1/4), both b (1/4), one of each (1/2): means 0, 1, 0.5.
    found = s.cluster_bootstrap([0.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b"], resamples=4000)
    assert (found.low, found.high, found.n) == (0.0, 1.0, 2)
    middle = s.cluster_bootstrap([0.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b"], level=0.4, resamples=4000)
    assert (middle.low, middle.high) == (0.5, 0.5)


@pytest.mark.slow
def test_clusters_widen_the_interval_to_its_level():
    def draw_interval(clustered: bool):
        def interval(draw: np.random.Generator) -> s.Interval:
            labels = np.repeat(np.arange(100), 5)
            x = np.repeat(draw.normal(0, 1, 100), 5) + draw.normal(0, 0.1, 500)
            return s.cluster_bootstrap(x, labels if clustered else None, resamples=1000 if clustered else 200)

        return interval

    # 95% +- 1.1% (one standard error of 400 trials); measured 94.8% over 1,500.
    assert s.coverage(draw_interval(True), 0.0, 400) > 0.92
    assert s.coverage(draw_interval(False), 0.0, 400) < 0.8


def test_clustered_error_of_single_item_clusters_is_the_naive_one():
    x = np.random.default_rng(3).normal(size=50)
    assert s.clustered_standard_error(x, range(50)) == pytest.approx(s.standard_error(x) * math.sqrt(49 / 50))
    assert s.clustered_standard_error(np.repeat(x, 4), np.repeat(np.arange(50), 4)) == pytest.approx(
        s.clustered_standard_error(x, range(50))
    )


def test_bootstrap_is_deterministic():
    assert s.paired_bootstrap([1, 0, 1, 1], [0, 0, 1, 0]) == s.paired_bootstrap([1, 0, 1, 1], [0, 0, 1, 0])


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 0), (9, 3), (4, 4), (1, 12)])
def test_mcnemar_equals_the_exact_binomial_test(gained: int, lost: int):
    new = [True] * gained + [False] * lost + [True] * 20 + [False] * 7
    old = [False] * gained + [True] * lost + [True] * 20 + [False] * 7
    expected = stats.binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
    assert s.mcnemar(new, old) == pytest.approx(expected)


def test_pass_at_k_equals_all_subsets():
    for n, correct, k in [(6, 2, 3), (5, 0, 2), (5, 5, 1), (6, 5, 4)]:
        samples = [1] * correct + [0] * (n - correct)
        subsets = list(itertools.combinations(samples, k))
        assert s.pass_at_k(n, correct, k) == pytest.approx(np.mean([max(subset) for subset in subsets]))
        assert s.pass_hat_k(n, correct, k) == pytest.approx(np.mean([min(subset) for subset in subsets]))
    with pytest.raises(ValueError, match="pass@3 from 1 of 2"):
        s.pass_at_k(2, 1, 3)


def test_holm_equals_the_textbook_example_and_keeps_the_order():
    adjusted = s.holm({"d": 0.04, "a": 0.01, "c": 0.03, "b": 0.02})
    assert adjusted == pytest.approx({"d": 0.06, "a": 0.04, "c": 0.06, "b": 0.06})
    assert list(adjusted) == ["d", "a", "c", "b"]
    assert s.holm({}) == {}


def test_non_inferiority_has_three_outcomes():
    good, unclear, bad = s.Interval(0, -0.01, 0.01, 9), s.Interval(0, -0.05, 0.05, 9), s.Interval(-0.1, -0.15, -0.05, 9)
    assert s.non_inferior(good, 0.02) and not s.inferior(good, 0.02)
    assert not s.non_inferior(unclear, 0.02) and not s.inferior(unclear, 0.02)
    assert s.inferior(bad, 0.02)
    with pytest.raises(ValueError, match="margin"):
        s.non_inferior(good, 0.0)


def test_one_sided_p_equals_scipy():
    draw = np.random.default_rng(4)
    new, old = draw.normal(0.1, 1, 40), draw.normal(0, 1, 40)
    expected = stats.ttest_rel(new, old, alternative="greater").pvalue
    assert s.p_superior(new, old) == pytest.approx(expected)
    assert s.p_superior(new, old, margin=0.5) < s.p_superior(new, old)
    assert s.p_superior([1, 1, 1], [1, 1, 1]) == 1.0 and s.p_superior([1, 1, 1], [1, 1, 1], margin=0.1) == 0.0


def test_rule_of_three():
    assert s.zero_failures_bound(300) == pytest.approx(3 / 300, rel=0.01)
    assert s.zero_failures_bound(0) == 1.0


def test_items_needed_reaches_its_power():
    n = s.items_needed(0.3, 1.0)
    draw = np.random.default_rng(5)
    found = [s.superior(s.mean_interval(draw.normal(0.3, 1.0, n))) for _ in range(1000)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.04)
