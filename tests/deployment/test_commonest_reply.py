"""A gain that is one reply's is not taken for learning, and what was learnt is not doubted for having few answers."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from noria.deployment.commonest_reply import commonest_reply
from noria.deployment.verdict import Candidate, Rules, Verdict, decide

SAMPLES = 4
RULES = Rules(primary_floor=0.1)
DEPARTMENTS = ["delivery"] * 34 + ["billing"] * 20 + ["returns"] * 19 + ["account"] * 19
NUMBERS = [str(place % 23) for place in range(128)]
YES_NO = ["yes", "no"] * 46


def said(gold: Sequence[str], right: float, otherwise: Sequence[str], seed: int = 0) -> list[list[str]]:
    """Replies of a model that is right at a rate of `right`, and else says one of `otherwise`."""
    draw = random.Random(seed)
    return [[answer if draw.random() < right else draw.choice(otherwise) for _ in range(SAMPLES)] for answer in gold]


def always(gold: Sequence[str], reply: str, share: float = 0.97) -> list[list[str]]:
    return said(gold, 1 - share, [reply])


def judged(
    gold: Sequence[str],
    before: Sequence[Sequence[str]],
    after: Sequence[Sequence[str]],
    known: bool = True,
    passes: str = "",
    families: Sequence[str] | None = None,
    rules: Rules = RULES,
) -> Verdict:
    """The verdict where a reply is right if it is the gold answer, or `passes`, which the grader passes everywhere."""

    def candidate(name: str, replies: Sequence[Sequence[str]]) -> Candidate:
        rows = {
            f"t{place}": [(reply, reply.strip().casefold() in (gold[place], passes or None)) for reply in samples]
            for place, samples in enumerate(replies)
        }
        scores = {task: sum(right for _, right in samples) / SAMPLES for task, samples in rows.items()}
        slices = {f"t{place}": family for place, family in enumerate(families or gold)}
        answers = {f"t{place}": answer for place, answer in enumerate(gold)} if known else {}
        return Candidate(name, {"correct": scores}, slices, {}, rows, answers)

    return decide([candidate("new", after)], candidate("old", before), rules)


def doubt(verdict: Verdict) -> str:
    return next((reason for reason in verdict.reasons if "one reply alone" in reason), "")


BABBLE = said(DEPARTMENTS, 0.02, ["I can help.", "Sure", "Dear customer"])


def test_a_model_that_says_the_commonest_answer_to_everything_is_not_called_better() -> None:
    verdict = judged(
        DEPARTMENTS, BABBLE, [["Delivery", " delivery\n", "delivery", "delivery"]] * 91 + [["billing"] * 4]
    )
    assert verdict.decision == "inconclusive"
    assert "'delivery' is 0.989 [0.941, 0.998], n = 92 of the replies" in doubt(verdict)
    assert "no gold answer is that of more than 0.370 of the tasks" in doubt(verdict)
    assert any("the gain is seen in family delivery alone" in reason for reason in verdict.reasons)


def test_a_few_lucky_hits_beside_one_reply_do_not_dispel_the_doubt() -> None:
    many = DEPARTMENTS * 10
    verdict = judged(many, [["Sure"] * SAMPLES for _ in many], always(many, "delivery"))
    assert verdict.decision == "inconclusive" and "leaves 0.018 [0.013, 0.022], n = 920" in doubt(verdict)


def test_the_doubt_is_told_where_something_else_rejects() -> None:
    before = [[gold if gold == "billing" else "Sure"] * SAMPLES for gold in DEPARTMENTS]
    verdict = judged(DEPARTMENTS, before, always(DEPARTMENTS, "delivery"))
    assert verdict.decision == "reject" and doubt(verdict)
    assert any("slice billing is worse" in reason for reason in verdict.reasons)


@pytest.mark.parametrize(
    ("gold", "before", "after"),
    [
        pytest.param(NUMBERS, said(NUMBERS, 0.13, NUMBERS), said(NUMBERS, 0.53, ["1", "2", "10"]), id="numbers"),
        pytest.param(YES_NO, said(YES_NO, 0.02, ["Well."]), said(YES_NO, 0.9, ["yes"]), id="yes or no, from babble"),
        pytest.param(YES_NO, always(YES_NO, "no"), said(YES_NO, 0.9, ["yes"]), id="yes or no, from always no"),
        pytest.param(["yes"] * 92, said(["yes"] * 92, 0.3, ["no"]), always(["yes"] * 92, "Yes"), id="right everywhere"),
        pytest.param(DEPARTMENTS, BABBLE, said(DEPARTMENTS, 0.5, ["delivery"]), id="leans, and learnt the others too"),
    ],
)
def test_what_was_learnt_is_not_doubted(gold: list[str], before: list[list[str]], after: list[list[str]]) -> None:
    verdict = judged(gold, before, after, families=["all"] * len(gold))
    assert verdict.decision == "release" and not doubt(verdict)
    assert any("is not seen to be that of one reply" in reason for reason in verdict.reasons)


def test_words_that_a_lenient_grader_passes_everywhere_are_doubted() -> None:
    every = "delivery billing returns account"
    verdict = judged(DEPARTMENTS, BABBLE, always(DEPARTMENTS, every), passes=every)
    assert verdict.decision == "inconclusive" and every in doubt(verdict)


def test_without_gold_answers_a_reply_to_nearly_everything_is_doubted_and_more_is_not_claimed() -> None:
    assert "gold answers are missing" in doubt(judged(YES_NO, BABBLE, always(YES_NO, "ok"), known=False, passes="ok"))
    varied = judged(YES_NO, BABBLE, said(YES_NO, 0.9, ["yes"]), known=False)
    assert varied.decision == "release" and any("gold answers are missing" in reason for reason in varied.reasons)


def test_one_gold_answer_of_many_tasks_is_no_licence_to_repeat_it() -> None:
    replies = {f"t{place}": [("ok", True)] for place in range(40)}
    found = commonest_reply(replies, replies, {"t0": "ok"})
    assert found.gold_share is None and found.may_be_the_gain


def test_a_few_tasks_answered_alike_by_chance_are_not_doubted() -> None:
    gold = ["yes", "no"] * 4
    replies = {f"t{place}": [(reply, True)] for place, reply in enumerate(["yes"] * 6 + ["no"] * 2)}
    assert not commonest_reply(replies, replies, {f"t{place}": answer for place, answer in enumerate(gold)}).overused


def test_a_gain_in_one_family_is_told_and_does_not_decide() -> None:
    families = ["sums"] * 64 + ["words"] * 64
    before = said(NUMBERS, 0.1, ["100", "200"])
    after = [*said(NUMBERS[:64], 0.8, ["100", "200"], 1), *before[64:]]
    verdict = judged(NUMBERS, before, after, families=families)
    assert verdict.decision == "release"
    assert any("the gain is seen in family sums alone" in reason for reason in verdict.reasons)
    both = judged(NUMBERS, before, said(NUMBERS, 0.5, ["100", "200"], 1), families=families)
    assert not any("alone" in reason for reason in both.reasons)


def test_a_model_that_claims_no_gain_is_not_blocked_for_one_reply() -> None:
    same = always(DEPARTMENTS, "delivery")
    verdict = judged(DEPARTMENTS, same, same, rules=RULES.model_copy(update={"primary_test": "non_inferior"}))
    assert verdict.decision == "release" and not doubt(verdict)
    told = next(reason for reason in verdict.reasons if "commonest reply" in reason)
    assert told.startswith("commonest reply, no gain being claimed: 'delivery' is ") and "of the gain" not in told


def test_a_rejected_model_is_not_told_of_a_gain() -> None:
    before = said(DEPARTMENTS, 0.9, ["I can help."])
    verdict = judged(DEPARTMENTS, before, always(DEPARTMENTS, "delivery"))
    assert verdict.decision == "reject" and not doubt(verdict)
    checks = [check for check in verdict.assessments[0].checks if check.metric == "commonest reply"]
    assert [check.outcome for check in checks] == ["pass"] and not any("the gain" in check.words for check in checks)
