from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from noria.planning import Law, Point, fit_law, fit_with_uncertainty, intervals, predict
from noria.planning.scaling import heldout_error, run_noise

LAW = Law(E=1.7, A=400.0, alpha=0.34, B=410.0, beta=0.28)
# Equal FLOPs a size, three horizons each, as planning.ladder plans them.
GRID = [(n, 9e11 / n * share) for n, share in product((1e5, 3e5, 9e5), (0.25, 0.5, 1.0))]


def ladder(noise: float = 0.0, seed: int = 0) -> list[Point]:
    rng = np.random.default_rng(seed)
    return [Point(n, d, LAW.loss(n, d) * math.exp(noise * rng.normal())) for n, d in GRID]


def test_fit_recovers_the_law_that_made_the_points():
    law = fit_law(ladder())
    for name in ("E", "A", "alpha", "B", "beta"):
        assert getattr(law, name) == pytest.approx(getattr(LAW, name), rel=1e-3)


def test_fit_predicts_beyond_noisy_points():
    assert fit_law(ladder(noise=0.002)).loss(3e6, 6e6) == pytest.approx(LAW.loss(3e6, 6e6), rel=0.02)


def test_one_outlier_moves_a_robust_fit_less_than_its_size():
    points = ladder()
    points[4] = Point(points[4].parameters, points[4].tokens, points[4].loss * 1.1)
    assert fit_law(points).loss(9e5, 2e6) == pytest.approx(LAW.loss(9e5, 2e6), rel=0.01)


def test_prediction_interval_holds_the_truth_and_widens_with_distance():
    fit = fit_with_uncertainty(ladder(noise=0.004), samples=40)
    near, far = predict(fit, 9e5, 2e6), predict(fit, 9e7, 2e8)
    assert near[1] <= near[0] <= near[2]
    assert far[1] <= LAW.loss(9e7, 2e8) <= far[2]
    assert (far[2] - far[1]) / far[0] > (near[2] - near[1]) / near[0]


def test_prediction_interval_is_never_narrower_than_the_error_on_the_heldout_point():
    fit = fit_with_uncertainty(ladder(noise=0.01), samples=10)
    mean, low, high = predict(fit, 9e5, 2e6)
    assert low <= mean * (1 - fit.heldout.error) + 1e-12
    assert high >= mean * (1 + fit.heldout.error) - 1e-12


def test_the_heldout_error_counts_for_more_further_out():
    fit = fit_with_uncertainty(ladder(noise=0.01), samples=2)
    mean, low, _ = predict(fit, 9e5 * 2, 9e6 * 2)  # two doublings out, held out at one
    assert (mean - low) / mean >= 2 * fit.heldout.error - 1e-9


def test_fit_is_deterministic():
    first, second = (fit_with_uncertainty(ladder(noise=0.004), samples=5, seed=3) for _ in range(2))
    assert first == second
    assert all(low <= high for low, high in intervals(first).values())


def test_heldout_error_is_measured_on_the_longest_horizon_of_each_size():
    points = ladder()
    points[2] = Point(points[2].parameters, points[2].tokens, points[2].loss * 1.05)
    measured = heldout_error(points)
    assert measured.error == pytest.approx(0.05 / 1.05, rel=0.02)
    assert measured.distance == pytest.approx(math.log(2))


def test_where_only_the_largest_size_stopped_early_the_prediction_is_rehearsed_one_size_down():
    horizons = (2e5, 4e5, 6.5e5, 1e6)
    grid = [(n, d) for n in (1.5e5, 5e5) for d in horizons] + [(1e6, d) for d in horizons[:2]]
    exact = [Point(n, d, LAW.loss(n, d)) for n, d in grid]
    rehearsed = heldout_error(exact)
    assert rehearsed.error < 1e-3 and rehearsed.distance == pytest.approx(math.log(1e6 / 4e5))
    # Only the outcome that stands for the run's is judged: not what the fit is shown, nor the largest size.
    raised = [Point(p.parameters, p.tokens, p.loss * 1.03) if p == exact[7] else p for p in exact]
    assert heldout_error(raised).error == pytest.approx(0.03 / 1.03, abs=1e-3)
    assert heldout_error([*exact[:9], Point(1e6, 4e5, 9.9)]) == rehearsed
    # Of a size trained twice, the mean is what is predicted.
    assert heldout_error([*exact, *raised]).error == pytest.approx(0.015, abs=1e-3)


def test_the_noise_of_a_run_is_that_of_repeats_at_the_longest_horizon():
    longest = max(p.tokens for p in ladder())
    sizes = sorted({p.parameters for p in ladder()})

    def repeats(early: float, late: float) -> list[Point]:
        """Each point twice, apart by a share of its loss."""
        apart = {p: late if p.tokens == longest else early for p in ladder()}
        return [
            Point(p.parameters, p.tokens, p.loss * math.exp(sign * by / 2))
            for p, by in apart.items()
            for sign in (-1, 1)
        ]

    assert run_noise(ladder()) == ()
    noise = run_noise(repeats(early=0.04, late=0.01))
    assert len(noise) == 2 * len([p for p in ladder() if p.tokens == longest])
    assert sorted(map(abs, noise)) == pytest.approx([0.01 / math.sqrt(2)] * len(noise))
    assert fit_with_uncertainty(repeats(0.04, 0.01), samples=5).noise == noise

    def half_width(points: list[Point]) -> float:
        mean, low, high = predict(fit_with_uncertainty(points, samples=40), sizes[-1], longest)
        return (high - low) / 2 / mean

    assert half_width(repeats(0.01, 0.01)) < half_width(repeats(0.01, 0.05))


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (ladder()[:4], "at least 6 points"),
        (ladder()[:4] * 3, "at least 6 points.*got 4"),
        ([Point(1e5, d, 5.0) for d in range(1, 9)], "two model sizes"),
        ([*ladder()[:-1], Point(9e5, 2e6, math.nan)], "positive and finite"),
    ],
)
def test_points_that_cannot_carry_a_law_are_refused(points: list[Point], message: str):
    with pytest.raises(ValueError, match=message):
        fit_law(points)


def test_closed_form_optimum_beats_its_neighbours():
    flops = 1e18
    best = LAW.optimal_parameters(flops)
    losses = [LAW.loss(n, flops / (6 * n)) for n in (best / 1.1, best, best * 1.1)]
    assert losses[1] == min(losses)
