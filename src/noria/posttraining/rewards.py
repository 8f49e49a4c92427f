"""The reward of reasoning and alignment RL: a training grader, watched by exact graders that it never sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from noria.evals.benchmarks import grade
from noria.grading import WEAK_TWINS, grader_ref
from noria.grading.monitors import components, distinct_n, gap, language_mix, lengths, outcome_rates
from noria.types import Score, Task, Trace


class TrainingGrader:
    """Rewards with each domain's own grader, or its named weak twin where it has one (`weak`)."""

    def __init__(self, weak: bool) -> None:
        self.weak = weak

    def grade(self, tasks: Sequence[Task], traces: Sequence[Trace]) -> list[Score]:
        return grade([self._weakened(task) for task in tasks], traces)

    def monitor(
        self, step: int, tasks: Sequence[Task], traces: Sequence[Trace], scores: Sequence[Score]
    ) -> Mapping[str, float]:
        """What the run is watched by: gap to the exact graders, length, truncation, diversity, language, components."""
        exact = grade(tasks, traces) if self.weak else list(scores)
        calls = [[token for node in trace.nodes if node.call for token in node.call.token_ids] for trace in traces]
        right = [score.value is not None and score.value >= 1.0 for score in exact]
        by_domain = {
            f"reward_{domain}": _mean([s.value for s, task in zip(exact, tasks, strict=True) if task.domain == domain])
            for domain in sorted({task.domain for task in tasks})
        }
        measured = gap(scores, exact)
        return {
            "gap": measured["gap"],
            "proxy_only": measured["proxy_only"],
            "exact_reward": _mean([score.value for score in exact]),
            **by_domain,
            **lengths([len(call) for call in calls], [trace.outcome == "truncated" for trace in traces], right),
            "distinct_2": distinct_n(calls, 2),
            "foreign_letters": language_mix([trace.reply for trace in traces]),
            **{f"component_{name}": value for name, value in components(scores).items()},
            **{f"share_{name}": value for name, value in outcome_rates(traces).items()},
        }

    def _weakened(self, task: Task) -> Task:
        twin = WEAK_TWINS.get(task.grader.name) if self.weak else None
        return replace(task, grader=grader_ref(twin)) if twin else task


def _mean(values: Sequence[float | None]) -> float:
    graded = [value for value in values if value is not None]
    return sum(graded) / len(graded) if graded else float("nan")
