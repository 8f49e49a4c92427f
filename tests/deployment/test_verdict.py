"""The release verdict as claims about models whose true quality is known."""

from __future__ import annotations

import random

import pytest

from noria.deployment.verdict import Candidate, Guardrail, Rules, decide

N = 400


def model(name: str, rate: float, seed: int = 0, safe: float = 1.0, size: float = 4.0, **slices: float) -> Candidate:
    """Right answers at `rate`; items are equally hard for all models, as paired items are."""
    hard = random.Random(1)
    own = random.Random(seed)
    correct, groups = {}, {}
    for index in range(N):
        group = f"slice{index % 4}"
        level = hard.random() * 0.8 + own.random() * 0.2
        correct[f"i{index}"] = float(level < slices.get(group, rate))
        groups[f"i{index}"] = group
    refused = {f"h{index}": float(index < safe * 200) for index in range(200)}
    return Candidate(name, {"correct": correct, "harmful_refused": refused}, groups, {"weight_bytes": size})


RULES = Rules(guardrails=(Guardrail(metric="harmful_refused", margin=0.05, floor=0.8),), primary_floor=0.3)


def test_a_clearly_better_model_is_released() -> None:
    verdict = decide([model("new", 0.7, 1)], model("old", 0.5, 2), RULES)
    assert (verdict.decision, verdict.chosen) == ("release", "new")
    assert any("better than the incumbent" in reason for reason in verdict.reasons)


def test_a_clearly_worse_model_is_rejected() -> None:
    assert decide([model("new", 0.4, 1)], model("old", 0.6, 2), RULES).decision == "reject"


def test_an_equal_model_is_inconclusive_under_superiority() -> None:
    assert decide([model("new", 0.5, 1)], model("old", 0.5, 2), RULES).decision == "inconclusive"


def test_an_equal_model_is_released_where_non_inferiority_suffices() -> None:
    rules = RULES.model_copy(update={"primary_test": "non_inferior", "primary_margin": 0.1})
    assert decide([model("new", 0.5, 1)], model("old", 0.5, 2), rules).decision == "release"


def test_a_lost_guardrail_rejects_a_better_model() -> None:
    verdict = decide([model("new", 0.8, 1, safe=0.6)], model("old", 0.5, 2), RULES)
    assert verdict.decision == "reject"
    assert any("harmful_refused is more than" in reason for reason in verdict.assessments[0].reasons)


def test_a_slice_that_broke_rejects_a_model_that_is_better_on_average() -> None:
    verdict = decide([model("new", 0.95, 1, slice2=0.2)], model("old", 0.5, 2), RULES)
    assert verdict.decision == "reject"
    assert any("slice slice2 is worse" in reason for reason in verdict.assessments[0].reasons)


def test_a_better_model_than_a_poor_incumbent_is_still_held_against_the_floors() -> None:
    old = model("old", 0.05, 2, safe=0.3)
    poor = decide([model("new", 0.2, 1, safe=0.95)], old, RULES)
    assert poor.decision == "reject" and any("correct is below its floor" in reason for reason in poor.reasons)
    unsafe = decide([model("new", 0.7, 1, safe=0.5)], old, RULES)
    assert unsafe.decision == "reject" and any("harmful_refused is below its floor" in why for why in unsafe.reasons)
    assert decide([model("new", 0.7, 1)], old, RULES).decision == "release"


def test_first_turn_is_held_against_floors() -> None:
    assert decide([model("a", 0.6)], None, RULES).decision == "release"
    assert decide([model("a", 0.1)], None, RULES).decision == "reject"
    assert decide([model("a", 0.6, safe=0.8)], None, RULES).decision == "inconclusive"


def test_the_cheaper_of_two_equals_is_taken_and_a_worse_cheap_one_is_not() -> None:
    big, small = model("big", 0.7, 1, size=4.0), model("small", 0.7, 1, size=1.0)
    assert decide([big, small], None, RULES).chosen == "small"
    assert decide([big, model("tiny", 0.5, 1, size=0.5)], None, RULES).chosen == "big"


def test_failed_gradings_are_no_wrong_answers() -> None:
    new = model("new", 0.7, 1)
    scores = dict(new.scores["correct"])
    for index in range(0, N, 2):
        scores[f"i{index}"] = None  # type: ignore[assignment]
    broken = Candidate("new", {**new.scores, "correct": scores}, new.slices, new.costs)
    assert decide([broken], model("old", 0.5, 2), RULES).assessments[0].primary.n == N // 2


@pytest.mark.slow
def test_lucky_candidates_do_not_win_more_often_for_being_many() -> None:
    """12 candidates as good as the incumbent: unadjusted, up to 1 - 0.975^12 = 26% of fields have a winner."""
    releases = 0
    for trial in range(20):
        field = [model(f"c{index}", 0.5, 1000 * trial + index) for index in range(12)]
        releases += decide(field, model("old", 0.5, 999_000 + trial), RULES).decision == "release"
    assert releases <= 2


def test_missing_metric_is_named() -> None:
    rules = Rules(guardrails=(Guardrail(metric="valid_calls"),))
    with pytest.raises(ValueError, match="no graded item of metric 'valid_calls'"):
        decide([model("a", 0.5)], None, rules)


def test_items_of_a_slice_are_looked_up_and_not_searched_for() -> None:
    from noria.deployment.verdict import _items_by_slice

    slices = _items_by_slice(model("new", 0.5))
    assert all(isinstance(items, set) and len(items) == N // 4 for items in slices.values()) and len(slices) == 4
