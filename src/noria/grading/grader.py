"""What a grader is: tasks and traces in, one Score each out; versioned by the hash of its code and data.

A grading that fails (a crash, a timeout, a sandbox that would not start) is a Score with status "failed" and no value.
It is never a 0 and never becomes a reward: `rewards` returns it as a masked entry.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Literal, Protocol

from noria.sandbox import SandboxUnavailable
from noria.types import GraderRef, Score, Task, Trace, digest

if TYPE_CHECKING:
    import numpy as np

FailureReason = Literal["timeout", "crash", "sandbox", "invalid_task"]

# What went wrong around the policy, not in it: such a trace has nothing that could be judged.
BROKEN_OUTCOMES: Mapping[str, FailureReason] = {
    "sandbox_error": "sandbox",
    "harness_error": "crash",
    "model_error": "crash",
    "aborted": "crash",
}


class Grader(Protocol):
    """Judges traces in batches. `grade` returns one Score a trace, in order, and never raises for one bad trace.

    It raises SandboxUnavailable where code must be run and this machine has no sandbox at all.
    """

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def sees_thinking(self) -> bool: ...

    def grade(self, tasks: Sequence[Task], traces: Sequence[Trace]) -> list[Score]: ...


@dataclass(frozen=True)
class Verdict:
    """What a judge found: `value` in [0, 1], its named parts, and a short reason for people."""

    value: float
    evidence: str = ""
    components: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """The judge could not judge. Not the same as a wrong answer."""

    reason: FailureReason
    evidence: str = ""


Judge = Callable[[Sequence[Task], Sequence[str]], Sequence[Verdict | Failure]]


@dataclass(frozen=True)
class TextGrader:
    """A grader that judges texts: the final answer, or the whole reply where `sees_thinking` is declared.

    The judge of a grader that does not see thinking never receives it: pressure on visible reasoning teaches a model
    to hide it, so what a grader reads is decided here and not left to each judge.
    """

    name: str
    version: str
    judge: Judge
    sees_thinking: bool = False

    @property
    def ref(self) -> GraderRef:
        return GraderRef(self.name, self.version)

    def grade(self, tasks: Sequence[Task], traces: Sequence[Trace]) -> list[Score]:
        if len(tasks) != len(traces):
            raise ValueError(f"{len(tasks)} tasks for {len(traces)} traces: pass one task a trace")
        scores: list[Score | None] = [self._unjudgeable(task, trace) for task, trace in zip(tasks, traces, strict=True)]
        open_places = [place for place, score in enumerate(scores) if score is None]
        texts = [traces[place].reply if self.sees_thinking else traces[place].answer for place in open_places]
        findings = self._judge([tasks[place] for place in open_places], texts)
        for place, finding in zip(open_places, findings, strict=True):
            scores[place] = self._score(finding)
        return [score for score in scores if score is not None]

    def _unjudgeable(self, task: Task, trace: Trace) -> Score | None:
        if trace.task_id != task.id:
            return self._score(Failure("invalid_task", f"the trace is of task {trace.task_id}, not of {task.id}"))
        if trace.outcome in BROKEN_OUTCOMES:
            return self._score(Failure(BROKEN_OUTCOMES[trace.outcome], f"the rollout ended in {trace.outcome}"))
        return None

    def _judge(self, tasks: Sequence[Task], texts: Sequence[str]) -> Sequence[Verdict | Failure]:
        try:
            return self.judge(tasks, texts)
        except SandboxUnavailable:
            raise  # says what to install; nothing can be graded on this machine until then
        except Exception:  # noqa: BLE001 - recorded below as a failed grading of the text that caused it
            if len(tasks) == 1:
                return [crash()]
        # One text broke the batch: judge each alone, so that only the bad one fails.
        return [self._judge([task], [text])[0] for task, text in zip(tasks, texts, strict=True)]

    def _score(self, finding: Verdict | Failure) -> Score:
        if isinstance(finding, Failure):
            return Score("failed", self.ref, None, finding.reason, evidence=finding.evidence)
        if not math.isfinite(finding.value):
            return Score("failed", self.ref, None, "crash", evidence=f"the judge gave the value {finding.value}")
        components = dict(finding.components)
        return Score("graded", self.ref, float(finding.value), components=components, evidence=finding.evidence)


def one_by_one(judge: Callable[[Task, str], Verdict | Failure]) -> Judge:
    """A batch judge from one that judges a single text. What it raises becomes that text's Failure."""

    def judge_all(tasks: Sequence[Task], texts: Sequence[str]) -> list[Verdict | Failure]:
        return [_guarded(judge, task, text) for task, text in zip(tasks, texts, strict=True)]

    return judge_all


def _guarded(judge: Callable[[Task, str], Verdict | Failure], task: Task, text: str) -> Verdict | Failure:
    try:
        return judge(task, text)
    except Exception:  # noqa: BLE001 - any error of a judge is recorded as a failed grading, with its last lines
        return crash()


def crash() -> Failure:
    """The failure for the exception being handled, with its last lines as evidence."""
    return Failure("crash", traceback.format_exc(limit=-2)[-500:])


def version_of(*modules: ModuleType, data: str = "", packages: Sequence[str] = ()) -> str:
    """A grader's version: the hash of its modules' source, its data, and the releases of the packages that decide."""
    sources = [inspect.getsource(module) for module in modules]
    releases = [f"{package}=={importlib.metadata.version(package)}" for package in packages]
    return digest(*sources, data, *releases)


def rewards(scores: Sequence[Score]) -> tuple[np.ndarray, np.ndarray]:
    """(values, mask) of scores as rewards: float64 (N,), bool (N,). Where the mask is False the value is NaN.

    NaN and not 0, on purpose: whoever forgets the mask gets a loss that is not finite, and the guard stops the step,
    instead of a model that was quietly punished for a broken sandbox.
    """
    import numpy as np

    mask = np.array([score.status == "graded" for score in scores], dtype=bool)
    values = np.array([np.nan if score.value is None else score.value for score in scores], dtype=np.float64)
    return values, mask


def failures(scores: Sequence[Score]) -> dict[str, int]:
    """How many gradings failed, by reason."""
    counts: dict[str, int] = {}
    for score in scores:
        if score.status == "failed":
            counts[score.reason] = counts.get(score.reason, 0) + 1
    return counts
