"""A grader of the JSON language as a Grader: what reinforcement fine-tuning is rewarded by, and a check before it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence

from noria.grading import formula, grader_language, python_grader, similarity
from noria.grading.grader import BROKEN_OUTCOMES, version_of
from noria.grading.grader_language import AnyGrader, GraderError, run, said_errors
from noria.types import GraderRef, Score, Task, Trace

CHECKED = 24  # gold answers and empty ones that a grader is tried on before it is used


class LanguageGrader:
    """Grades the answer of a trace against `task.hidden["item"]`, the line of the task file. Sees no thinking.

    `threshold` is the reward from which on an answer counts as passed.
    """

    name = "language"
    sees_thinking = False

    def __init__(self, grader: AnyGrader) -> None:
        self.grader = grader
        self.threshold: float = getattr(grader, "pass_threshold", None) or 1.0
        modules = (sys.modules[__name__], grader_language, formula, similarity, python_grader)
        self.version = version_of(*modules, data=json.dumps(grader.model_dump(mode="json"), sort_keys=True))

    @property
    def ref(self) -> GraderRef:
        return GraderRef(self.name, self.version)

    def grade(self, tasks: Sequence[Task], traces: Sequence[Trace]) -> list[Score]:
        """One Score a trace. Equal answers to one task are graded once."""
        known: dict[tuple[str, str], Score] = {}
        scores = []
        for task, trace in zip(tasks, traces, strict=True):
            if trace.outcome in BROKEN_OUTCOMES:
                why = f"the rollout ended in {trace.outcome}"
                scores.append(Score("failed", self.ref, None, BROKEN_OUTCOMES[trace.outcome], evidence=why))
                continue
            asked = (task.id, trace.answer)
            if asked not in known:
                known[asked] = self.judge(task, trace.answer)
            scores.append(known[asked])
        return scores

    def judge(self, task: Task, answer: str) -> Score:
        result = run(self.grader, task.hidden["item"], answer)
        if result["metadata"]["errors"]["sample_parse_error"]:  # the model's fault, and worth nothing
            return Score("graded", self.ref, 0.0, components={"passed": 0.0}, evidence=said_errors(result))
        if result["reward"] is None:
            return Score("failed", self.ref, None, "crash", evidence=said_errors(result))
        passed = {"passed": float(result["reward"] >= self.threshold)}
        return Score("graded", self.ref, float(result["reward"]), components=passed | result["sub_rewards"])


def refuse_broken(grader: LanguageGrader, tasks: Mapping[str, Task]) -> None:
    """Try the grader on gold answers, where tasks have them, and on empty ones. Tasks go by where they stand.

    Raises GraderError for one that fails on either, does not pass gold answers, or passes empty ones: what it rewards
    would be noise, or silence.
    """
    chosen = list(tasks.items())[:: max(1, len(tasks) // CHECKED)][:CHECKED]
    gold = [(place, _judged(grader, place, task, task.answer)) for place, task in chosen if task.answer]
    empty = [(place, _judged(grader, place, task, "")) for place, task in chosen]
    lost = [place for place, score in gold if (score.value or 0.0) < grader.threshold]
    if lost:
        raise GraderError(
            f"the grader gives {len(lost)} of {len(gold)} gold answers less than {grader.threshold:g}, the first "
            f"{tasks[lost[0]].answer!r:.60} of {lost[0]}: it would reward something else than the right answer"
        )
    free = [place for place, score in empty if (score.value or 0.0) >= grader.threshold]
    if free:
        raise GraderError(
            f"the grader passes an empty answer to {len(free)} of {len(empty)} tasks, the first {free[0]}: a model "
            "would learn to say nothing"
        )
    if gold and len({score.value for _, score in (*gold, *empty)}) == 1:
        raise GraderError("the grader gives gold and empty answers the same reward: there is nothing to learn from it")


def _judged(grader: LanguageGrader, place: str, task: Task, answer: str) -> Score:
    """Stops at the first failure: a grader that hangs would hang at each."""
    score = grader.judge(task, answer)
    if score.value is None:
        raise GraderError(f"the grader fails on {place}: {score.evidence}")
    return score
