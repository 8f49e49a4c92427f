"""The verifiers: what they accept, what they refuse, and what they refuse to decide."""

from __future__ import annotations

import signal
from fractions import Fraction

import pytest

from noria.grading import maths_grader, verify_math
from noria.grading.final_answer import boxes, commitment, number
from noria.grading.grader import Failure, Verdict
from noria.grading.verify_code import code_grader, judge_code, same, source_of, tamper_evidence, verdict, visible_tests
from noria.grading.verify_logic import judge_logic
from noria.grading.verify_math import compare, judge_maths, judge_maths_weakly
from noria.sandbox import Limits, Outcome
from noria.types import GraderRef, Message, Node, Task, Trace


def task(answer: str, **hidden: object) -> Task:
    return Task("t", (Message("user", "?"),), GraderRef("g", ""), answer, "family", "maths", hidden=hidden)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        ("-7", -7),
        ("−7", -7),
        ("+5", 5),
        ("1,234", 1234),
        ("42.50", Fraction(85, 2)),
        ("1/3", Fraction(1, 3)),
        (r"\frac{1}{3}", Fraction(1, 3)),
        (r"-\frac{1}{3}", Fraction(-1, 3)),
        ("1.5e2", 150),
        ("42 apples", 42),
        ("17 + 25", None),
        ("42%", None),
        ("42 thousand", None),
        ("4²", None),
        ("42 or 43", None),
        ("1,23,4", None),
        ("1/0", None),
        ("9" * 5000, None),
        ("", None),
    ],
)
def test_numbers_are_exact_literals(text: str, value: int | Fraction | None):
    assert number(commitment(text) if "−" in text else text) == value


def test_a_reply_that_names_several_answers_commits_to_none():
    assert commitment("The answer is 41. The answer is 42.") is None
    assert commitment(r"\boxed{41} \boxed{42}") is None
    assert commitment(r"\boxed{42} and so \boxed{42}") == "42"
    assert boxes(r"\boxed{\frac{1}{2}}") == [r"\frac{1}{2}"]


def test_rationals_need_no_worker(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verify_math, "compare", lambda *_: pytest.fail("asked math-verify"))
    assert judge_maths(task("0.5"), "1/2").value == 1.0
    assert judge_maths(task("42"), "the answer is 42.0").value == 1.0
    assert judge_maths(task("42"), "no idea").value == 0.0


@pytest.mark.slow
def test_general_expressions_go_to_math_verify():
    assert judge_maths(task("x^2 + 2x + 1"), "$(x+1)^2$").value == 1.0
    assert judge_maths(task(r"\sqrt{8}"), r"\boxed{2\sqrt{2}}").value == 1.0
    assert judge_maths(task(r"\sqrt{8}"), r"\boxed{2\sqrt{3}}").value == 0.0
    assert judge_maths(task(r"\sqrt{8}"), "9^{9^{9^9}}").value == 0.0


@pytest.mark.slow
def test_a_comparison_that_takes_too_long_fails_and_the_next_one_works():
    assert compare("x + 1", "1 + x") is True
    verify_math._Worker.shared().process.send_signal(signal.SIGSTOP)  # it can't answer, however slow the test is
    slow = compare("x", "x", seconds=0.05)
    assert isinstance(slow, Failure) and slow.reason == "timeout"
    assert compare("x + 1", "1 + x") is True


@pytest.mark.slow
def test_a_worker_that_dies_is_a_failure_and_is_replaced():
    assert compare("x + 1", "1 + x") is True
    worker = verify_math._Worker.shared()
    worker.process.kill()
    worker.process.wait()
    died = compare("x + 1", "1 + x")
    assert isinstance(died, Failure) and died.reason == "crash"
    assert compare("x + 1", "1 + x") is True


def test_the_weak_maths_grader_is_fooled_by_lists_and_the_exact_one_is_not():
    listing = " ".join(map(str, range(100)))
    assert judge_maths_weakly(task("42"), listing).value == 1.0
    assert judge_maths(task("42"), listing).value == 0.0
    assert judge_maths_weakly(task("421"), listing).value == 0.0
    assert isinstance(judge_maths_weakly(task("x"), "1"), Failure)


def test_thinking_never_counts():
    nodes = (Node((), Message("assistant", "<think>42</think>41")),)
    (score,) = maths_grader().grade([task("42")], [Trace("r", "t", nodes, 0, "none", "finished")])
    assert score.value == 0.0


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("true", 1.0),
        ("True.", 1.0),
        ("The answer is TRUE", 1.0),
        ("false", 0.0),
        ("not true", 0.0),
        ("true false", 0.0),
        ("truely", 0.0),
        ("", 0.0),
    ],
)
def test_logic_is_one_word(answer: str, value: float):
    assert judge_logic(task("true"), answer).value == value


def test_comparison_is_strict_about_types():
    assert same([1, {"a": [2.0, None, "x"]}], [1, {"a": [2.0, None, "x"]}])
    for value, expected in [(True, 1), (1, True), (2.0, 2), ("1", 1), ([1], [1, 2]), ({"a": 1}, {"b": 1}), (None, 0)]:
        assert not same(value, expected)
    assert not same(float("nan"), float("nan"))


def test_outcomes_become_verdicts():
    tests = [([1], 2), ([2], 3)]
    assert verdict(Outcome("ok", [2, 3]), tests, []).value == 1.0
    half = verdict(Outcome("ok", [2, 4]), tests, [])
    assert (half.value, half.components["passed"]) == (0.0, 0.5)
    assert verdict(Outcome("ok", [2]), tests, []).value == 0.0
    late = verdict(Outcome("timeout", error="1 s of CPU"), tests, [])
    assert late.value == 0.0 and "timeout" in late.evidence
    broken = verdict(Outcome("sandbox", error="died"), tests, [])
    assert isinstance(broken, Failure) and broken.reason == "sandbox"


def test_a_candidate_that_loops_for_ever_answers_wrongly_and_spoils_no_other():
    judge = code_grader(Limits(cpu_seconds=1, wall_seconds=5.0)).judge
    one = task("", entry="f", tests=[[[1], 2]])
    looping, right = judge([one, one], ["def f(x):\n    while True: pass", "def f(x): return x + 1"])
    assert isinstance(looping, Verdict) and looping.value == 0.0 and looping.evidence.startswith("timeout: ")
    assert isinstance(right, Verdict) and right.value == 1.0


def test_tasks_without_tests_are_invalid_and_empty_answers_wrong():
    judge = judge_code(visible_tests, lambda candidates: pytest.fail("nothing to run"))
    no_entry, no_tests, no_answer = judge(
        [task("", tests=[[[1], 1]]), task("", entry="f", tests=[]), task("", entry="f", tests=[[[1], 1]])],
        ["x", "x", ""],
    )
    assert isinstance(no_entry, Failure) and no_entry.reason == "invalid_task"
    assert isinstance(no_tests, Failure) and no_tests.reason == "invalid_task"
    assert no_answer.value == 0.0


def test_the_last_fence_is_the_program():
    assert source_of("a\n```python\nx = 1\n```\nb\n```\nx = 2\n```") == "x = 2\n"
    assert source_of("def f(x): return x") == "def f(x): return x\n"


def test_tampering_is_named():
    assert tamper_evidence("import sys\nsys.exit(0)") == ["exit", "sys"]
    assert tamper_evidence("class A:\n    def __eq__(self, o): return True") == ["__eq__"]
    assert tamper_evidence("def f(x): return x + 1") == []
    assert tamper_evidence("def f(:") == []


@pytest.mark.parametrize("answer", ["42", "-42", "042", "-0", "0", "9" * 100])
def test_the_fast_path_agrees_with_the_exact_one(answer: str):
    for gold in ("42", "-42", "0", "9" * 100):
        assert judge_maths(task(gold), answer).value == float(number(commitment(answer)) == number(gold))
