"""The grader of `agent_lookup`: was the number right, and how many calls were invalid, as separate components."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from noria.grading.grader import BROKEN_OUTCOMES, version_of
from noria.types import GraderRef, Score, Task, Trace

# Invalid calls must cost something: where they were merely discarded, a policy learnt to emit them on hard tasks
# (Composer 2, arXiv 2603.24477). Three or more cost less than an answer is worth, so trying stays worthwhile.
INVALID_CALL_COST, MOST_COUNTED = 0.1, 3


@dataclass(frozen=True)
class LookupGrader:
    """value = outcome - cost of invalid calls; `components` hold both and the plain counts."""

    version: str
    name: str = "agent_lookup"
    sees_thinking: bool = False

    @property
    def ref(self) -> GraderRef:
        return GraderRef(self.name, self.version)

    def grade(self, tasks: Sequence[Task], traces: Sequence[Trace]) -> list[Score]:
        return [self._grade(task, trace) for task, trace in zip(tasks, traces, strict=True)]

    def _grade(self, task: Task, trace: Trace) -> Score:
        if trace.task_id != task.id:
            return Score("failed", self.ref, reason="invalid_task", evidence=f"the trace is of task {trace.task_id}")
        if trace.outcome in BROKEN_OUTCOMES:
            reason = BROKEN_OUTCOMES[trace.outcome]
            return Score("failed", self.ref, reason=reason, evidence=f"the rollout ended in {trace.outcome}")
        if trace.facts.get("backstop_fired"):
            return Score("failed", self.ref, reason="timeout", evidence="a tool was stopped by its backstop of time")
        outcome = float(trace.outcome == "finished" and trace.answer == task.answer)
        invalid = float(trace.facts.get("invalid_calls", 0.0))
        cost = INVALID_CALL_COST * min(invalid, MOST_COUNTED)
        components = {
            "outcome": outcome,
            "invalid_call_cost": -cost,
            "invalid_calls": invalid,
            "tool_calls": float(trace.facts.get("tool_calls", 0.0)),
        }
        evidence = f"{trace.outcome}: {trace.answer[:40]!r}, expected {task.answer!r}"
        return Score("graded", self.ref, outcome - cost, components=components, evidence=evidence)


def lookup_grader() -> LookupGrader:
    return LookupGrader(version_of(sys.modules[__name__]))
