"""Loop B's rule."""

from __future__ import annotations

import math

import pytest

from noria.evals.statistics import wilson
from noria.loops.evals_to_pretraining import Config, reweigh

BEFORE = {"crawl": 0.6, "maths": 0.2, "code": 0.2}
TEACHES = {"maths": ("addition", "subtraction"), "code": ("functions",)}


def result(right: int, n: int) -> dict[str, float]:
    interval = wilson(right, n)
    return {"right": right, "n": n, "low": interval.low, "high": interval.high}


def test_weak_families_get_more_and_weights_sum_to_one() -> None:
    results = {"addition": result(10, 300), "subtraction": result(20, 300), "functions": result(290, 300)}
    change = reweigh(BEFORE, results, TEACHES, Config())
    assert math.isclose(sum(change.after.values()), 1, abs_tol=1e-6)
    assert change.after["maths"] > BEFORE["maths"]
    assert change.after["code"] < BEFORE["code"] and change.after["crawl"] < BEFORE["crawl"]


def test_mastered_families_change_nothing() -> None:
    results = {name: result(300, 300) for name in ("addition", "subtraction", "functions")}
    assert reweigh(BEFORE, results, TEACHES, Config()).after == pytest.approx(BEFORE)


def test_few_items_move_less_than_many_at_the_same_rate() -> None:
    few, many = (reweigh(BEFORE, {"functions": result(n // 2, n)}, TEACHES, Config()).after["code"] for n in (6, 600))
    assert BEFORE["code"] <= few < many


def test_no_source_falls_below_its_least_share() -> None:
    before = {"crawl": 0.1, "maths": 0.9}
    change = reweigh(before, {"addition": result(0, 1000)}, {"maths": ("addition",)}, Config(most=10, strength=10))
    assert change.after["crawl"] == pytest.approx(0.05) and change.factors["maths"] == 10


def test_weights_need_not_sum_to_one_but_must_be_usable() -> None:
    assert reweigh({"a": 2.0, "b": 6.0}, {}, {}, Config()).after == pytest.approx({"a": 0.25, "b": 0.75})
    for bad in ({}, {"a": 0.0}, {"a": -1.0, "b": 2.0}, {"a": math.nan}):
        with pytest.raises(ValueError, match="weights before"):
            reweigh(bad, {}, {}, Config())
    with pytest.raises(ValueError, match="no source books"):
        reweigh(BEFORE, {}, {"books": ("addition",)}, Config())
