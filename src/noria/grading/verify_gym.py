"""reasoning-gym's own scorers as a grader: an answer is worth what the scorer of its family says, from 0 to 1."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from noria.grading import final_answer
from noria.grading.final_answer import commitment
from noria.grading.grader import Failure, TextGrader, Verdict, one_by_one, version_of
from noria.types import Task

_AROUND = " \t\n.*\"'`“”‘’"


def gym_grader() -> TextGrader:
    """The scorer named by `task.hidden["gym"]` on `task.hidden["entry"]`, an item of that family's data set."""
    version = version_of(sys.modules[__name__], final_answer, packages=("reasoning_gym",))
    return TextGrader("gym", version, one_by_one(judge_gym))


def judge_gym(task: Task, answer: str) -> Verdict | Failure:
    """The better score of two readings of `answer`: the whole of it, and the one expression that it commits to.

    The scorers compare with a bare answer; a model that says "The answer is 7." has answered. What several numbers
    are named in commits to none (see final_answer), so naming many does not pay.
    """
    if "gym" not in task.hidden or "entry" not in task.hidden:
        return Failure("invalid_task", f"task {task.id} names no reasoning-gym family and entry")
    score = scorer(task.hidden["gym"])
    readings = {answer.strip(_AROUND), (commitment(answer) or "").strip(_AROUND)} - {""}
    values = {reading: float(score(reading, task.hidden["entry"])) for reading in sorted(readings)}
    best = max(values, key=lambda reading: values[reading], default="")
    value = min(1.0, max(0.0, values.get(best, 0.0)))
    return Verdict(value, f"stated {best[:80]!r}, expected {task.answer!r}", {"exact": float(value >= 1.0)})


@cache
def scorer(family: str) -> Callable[[str, Mapping[str, Any]], float]:
    """The family's own scorer, with its default configuration. Raises ValueError for a family that does not exist."""
    from reasoning_gym.factory import get_score_answer_fn

    return get_score_answer_fn(family)
