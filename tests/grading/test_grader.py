"""The grader protocol: failures stay failures, thinking stays hidden, versions follow the code."""

from __future__ import annotations

import math
import types

import numpy as np
import pytest

from noria.grading import GRADERS, WEAK_TWINS, Failure, TextGrader, Verdict, grader_for, grader_ref, one_by_one, rewards
from noria.grading.grader import failures, version_of
from noria.sandbox import SandboxUnavailable
from noria.types import GraderRef, Message, Node, Score, Task, Trace


def task(answer: str = "42", **hidden: object) -> Task:
    return Task("t", (Message("user", "?"),), GraderRef("g", ""), answer, "family", "maths", hidden=hidden)


def trace(reply: str, outcome: str = "finished", task_id: str = "t") -> Trace:
    return Trace("r", task_id, (Node((), Message("assistant", reply)),), 0, "none", outcome)


def grader(judge, sees_thinking: bool = False) -> TextGrader:
    return TextGrader("g", "1", one_by_one(judge), sees_thinking)


def test_a_failed_grading_never_becomes_a_reward():
    ref = GraderRef("g", "1")
    values, mask = rewards(
        [Score("graded", ref, 0.5), Score("failed", ref, reason="timeout"), Score("graded", ref, 0.0)]
    )
    assert mask.tolist() == [True, False, True]
    assert values[0] == 0.5 and values[2] == 0.0
    assert math.isnan(values[1]), "forgetting the mask must break the loss, not punish the policy"
    assert not math.isfinite(float(values.mean()))


def test_one_bad_trace_fails_alone_and_raises_nothing():
    def judge(task: Task, text: str) -> Verdict:
        if text == "bad":
            raise ZeroDivisionError("the judge broke")
        return Verdict(1.0)

    scores = grader(judge).grade([task()] * 3, [trace("a"), trace("bad"), trace("c")])
    assert [score.status for score in scores] == ["graded", "failed", "graded"]
    assert scores[1].reason == "crash" and "the judge broke" in scores[1].evidence
    assert failures(scores) == {"crash": 1}


def test_a_batch_judge_that_breaks_on_one_text_still_judges_the_others():
    def judge_all(tasks, texts):
        if "bad" in texts:
            raise MemoryError("too much")
        return [Verdict(1.0) for _ in texts]

    scores = TextGrader("g", "1", judge_all).grade([task()] * 3, [trace("a"), trace("bad"), trace("c")])
    assert [score.status for score in scores] == ["graded", "failed", "graded"]


def test_a_machine_without_a_sandbox_is_no_failed_grading_but_an_error_that_says_so():
    def judge_all(tasks, texts):
        raise SandboxUnavailable("install bubblewrap")

    with pytest.raises(SandboxUnavailable, match="install bubblewrap"):
        TextGrader("g", "1", judge_all).grade([task()], [trace("a")])


@pytest.mark.parametrize(("outcome", "reason"), [("sandbox_error", "sandbox"), ("harness_error", "crash")])
def test_a_broken_rollout_is_a_failed_grading(outcome: str, reason: str):
    (score,) = grader(lambda task, text: Verdict(0.0)).grade([task()], [trace("x", outcome)])
    assert (score.status, score.reason) == ("failed", reason)


def test_a_truncated_rollout_is_judged():
    (score,) = grader(lambda task, text: Verdict(0.0)).grade([task()], [trace("x", "truncated")])
    assert score.status == "graded"


def test_a_value_that_is_not_finite_fails():
    (score,) = grader(lambda task, text: Verdict(float("nan"))).grade([task()], [trace("x")])
    assert score.status == "failed"


def test_a_trace_of_another_task_is_an_invalid_task():
    (score,) = grader(lambda task, text: Verdict(1.0)).grade([task()], [trace("x", task_id="other")])
    assert (score.status, score.reason) == ("failed", "invalid_task")


def test_thinking_is_withheld_unless_declared():
    seen: list[str] = []

    def judge(task: Task, text: str) -> Verdict:
        seen.append(text)
        return Verdict(1.0)

    reply = "<think>secret</think>open"
    grader(judge).grade([task()], [trace(reply)])
    grader(judge, sees_thinking=True).grade([task()], [trace(reply)])
    assert seen == ["open", reply]


def test_only_the_safety_grader_sees_thinking():
    assert [name for name in GRADERS if grader_for(name).sees_thinking] == ["safety"]


def test_versions_change_with_code_data_and_differ_between_graders():
    module = types.ModuleType("noria_fake")
    with pytest.raises((OSError, TypeError)):
        version_of(module)  # a grader whose source can't be read has no version, and says so
    versions = {name: grader_ref(name).version for name in GRADERS}
    assert len(set(versions.values())) == len(versions)
    assert version_of(types, data="a") != version_of(types, data="b")


def test_scores_carry_the_version_that_judged():
    ref = GraderRef("maths", "an older version")
    (score,) = grader_for(ref).grade([task()], [trace("42")])
    assert score.grader == grader_ref("maths") != ref


def test_unknown_graders_are_named_with_the_known_ones():
    with pytest.raises(KeyError, match=r"no grader is named 'math'.*maths"):
        grader_for("math")


def test_weak_twins_exist_beside_their_exact_graders():
    assert all(exact in GRADERS and weak in GRADERS for exact, weak in WEAK_TWINS.items())


def test_failure_reasons_reach_the_score():
    (score,) = grader(lambda task, text: Failure("timeout", "slow")).grade([task()], [trace("x")])
    assert (score.status, score.reason, score.evidence) == ("failed", "timeout", "slow")
    assert score.value is None and np.isnan(rewards([score])[0][0])
