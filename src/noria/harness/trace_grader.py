"""A grader of agent traces from a function that judges them: what every environment's grader has in common.

Broken rollouts and tools stopped by their backstop are failed gradings, never zeros; invalid calls cost in every
environment alike; each part of the reward is a column.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from types import ModuleType

from noria.grading.grader import BROKEN_OUTCOMES, Failure, crash, version_of
from noria.harness import reward
from noria.harness.reward import Parts, count, invalid_call_cost, total
from noria.sandbox import SandboxUnavailable
from noria.types import GraderRef, Score, Task, Trace

# One Parts or Failure a trace, in order. A batch, so that one sandbox can serve it.
TraceJudge = Callable[[Sequence[Task], Sequence[Trace]], Sequence[Parts | Failure]]


@dataclass(frozen=True)
class TraceGrader:
    """value = outcome + process + context, less invalid calls; zeroed by a veto: `reward.total`."""

    name: str
    version: str
    judge: TraceJudge
    sees_thinking: bool = False

    @property
    def ref(self) -> GraderRef:
        return GraderRef(self.name, self.version)

    def grade(self, tasks: Sequence[Task], traces: Sequence[Trace]) -> list[Score]:
        scores = {place: self._broken(*pair) for place, pair in enumerate(zip(tasks, traces, strict=True))}
        whole = [place for place, score in scores.items() if score is None]
        found = self._judge([tasks[place] for place in whole], [traces[place] for place in whole]) if whole else []
        scores |= {place: self._score(traces[place], parts) for place, parts in zip(whole, found, strict=True)}
        return [score for score in scores.values() if score is not None]

    def _broken(self, task: Task, trace: Trace) -> Score | None:
        if trace.task_id != task.id:
            return self._failed(Failure("invalid_task", f"the trace is of task {trace.task_id}, not of {task.id}"))
        if trace.outcome in BROKEN_OUTCOMES:
            return self._failed(Failure(BROKEN_OUTCOMES[trace.outcome], f"the rollout ended in {trace.outcome}"))
        if count(trace, "backstop_fired"):
            return self._failed(Failure("timeout", "a tool was stopped by its backstop of time"))
        return None

    def _judge(self, tasks: Sequence[Task], traces: Sequence[Trace]) -> Sequence[Parts | Failure]:
        try:
            found = self.judge(tasks, traces)
        except SandboxUnavailable:
            raise
        except Exception:  # noqa: BLE001 - recorded as a failed grading of the trace that caused it
            if len(tasks) == 1:
                return [crash()]
            return [self._judge([task], [trace])[0] for task, trace in zip(tasks, traces, strict=True)]
        if isinstance(found, Sequence) and len(found) == len(tasks):
            return found
        return [self._wrong(f"a list of one Parts or Failure a trace ({len(tasks)})", found)] * len(tasks)

    def _score(self, trace: Trace, parts: Parts | Failure) -> Score:
        if isinstance(parts, Failure):
            return self._failed(parts)
        if not isinstance(parts, Parts):
            return self._failed(self._wrong("Parts or a Failure", parts))
        invalid = count(trace, "invalid_calls")
        value, columns = total(
            Parts(
                parts.outcome,
                {**parts.process, "invalid_call_cost": invalid_call_cost(invalid)},
                parts.context,
                parts.vetoes,
                {**parts.facts, "invalid_calls": invalid, "tool_calls": count(trace, "tool_calls")},
            )
        )
        if not all(map(math.isfinite, (value, *columns.values()))):
            return self._failed(Failure("crash", f"the judge gave {columns}"))
        return Score("graded", self.ref, value, components=columns, evidence=parts.evidence)

    def _wrong(self, expected: str, given: object) -> Failure:
        """What the author's function gave in the place of what it must."""
        judge = inspect.unwrap(self.judge)
        code = getattr(judge, "__code__", None)
        place = f" ({code.co_filename}:{code.co_firstlineno})" if code else ""
        name = getattr(judge, "__name__", "the judge")
        return Failure("crash", f"{name}{place} must return {expected}, not {given!r:.60} ({type(given).__name__})")

    def _failed(self, failure: Failure) -> Score:
        return Score("failed", self.ref, reason=failure.reason, evidence=failure.evidence)


def trace_grader(
    name: str, judge: Callable[[Task, Trace], Parts | Failure] | TraceJudge, *modules: ModuleType, batch: bool = False
) -> TraceGrader:
    """A grader from a judge of one trace, or of many with `batch`. Its version hashes `modules`: those that decide."""
    version = version_of(sys.modules[__name__], reward, *modules)
    return TraceGrader(name, version, judge if batch else _each(judge))  # type: ignore[arg-type]


def right_answer(task: Task, trace: Trace) -> float:
    """1 where the trace ended in the task's answer."""
    return float(trace.outcome == "finished" and trace.answer == task.answer)


def answer_evidence(task: Task, trace: Trace) -> str:
    return f"{trace.outcome}: {trace.answer[:40]!r}, expected {task.answer[:40]!r}"


def _each(judge: Callable[[Task, Trace], Parts | Failure]) -> TraceJudge:
    @wraps(judge)
    def judge_all(tasks: Sequence[Task], traces: Sequence[Trace]) -> list[Parts | Failure]:
        return [judge(task, trace) for task, trace in zip(tasks, traces, strict=True)]

    return judge_all
