"""Graders on answers known to be good and bad; and the known answers themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from noria.evals import calibration_case, calibration_code
from noria.evals.calibration import CASES, calibrate, cases_for
from noria.grading import TextGrader, Verdict, grader_for, one_by_one
from noria.types import split_thinking


@pytest.mark.parametrize("domain", sorted(CASES))
def test_at_least_200_good_and_200_bad_answers_and_equal_ones_for_equal_seeds(domain: str):
    cases = cases_for(domain)
    assert sum(case.good for case in cases) >= 200 and sum(not case.good for case in cases) >= 200
    assert cases == cases_for(domain) and cases != cases_for(domain, seed=1)
    assert len({case.trick for case in cases if not case.good}) >= 16


def test_the_known_answers_use_no_grader():
    for module in (calibration_case, calibration_code):
        assert "grading" not in Path(module.__file__ or "").read_text()


def test_the_logic_grader_accepts_the_good_and_refuses_the_bad():
    found = calibrate(grader_for("logic"), cases_for("logic"))
    assert not found.mistakes
    assert found.counts["good_accepted"] >= 200 and found.false_positive["high"] < 0.02


def test_the_maths_grader_refuses_the_bad_and_misses_only_free_sentences():
    found = calibrate(grader_for("maths"), cases_for("maths"), keep_mistakes=1000)
    assert {mistake["trick"] for mistake in found.mistakes} == {"sentence around the number", "comes to"}
    assert found.false_positive["estimate"] == 0.0 and found.false_positive["high"] < 0.02
    assert found.true_positive["estimate"] > 0.9


@pytest.mark.slow
def test_the_code_grader_accepts_the_good_and_refuses_the_bad():
    found = calibrate(grader_for("code"), cases_for("code"))
    assert not found.mistakes
    assert found.counts["good_accepted"] >= 200 and found.counts["bad_rejected"] >= 200


def test_programs_known_to_be_good_and_near_misses_are_what_they_claim():
    for case in cases_for("code", 60):
        if case.trick not in ("plain", "near miss"):
            continue
        names: dict = {}
        exec(split_thinking(case.trace.reply)[1], names)
        results = [names["f"](*arguments) for arguments, _ in case.task.hidden["tests"]]
        expected = [value for _, value in case.task.hidden["tests"]]
        equal = [(type(a), a) for a in results] == [(type(b), b) for b in expected]
        assert equal == case.good, case


def test_weak_graders_err_in_the_way_they_are_named_for():
    maths = calibrate(grader_for("maths_weak"), cases_for("maths"), keep_mistakes=1000)
    assert "lists guesses" in {mistake["trick"] for mistake in maths.mistakes}
    assert maths.false_positive["low"] > 0.3


def test_a_grader_that_accepts_everything_and_one_that_fails_are_seen():
    cases = cases_for("logic", 20)
    yes = calibrate(TextGrader("yes", "1", one_by_one(lambda task, text: Verdict(1.0))), cases)
    assert yes.true_positive["estimate"] == 1.0 and yes.false_positive["estimate"] == 1.0

    def broken(task, text):
        raise RuntimeError("down")

    failed = calibrate(TextGrader("broken", "1", one_by_one(broken)), cases)
    assert failed.true_positive["estimate"] == 0.0 and failed.counts["good_failed"] == 20
