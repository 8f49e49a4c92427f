"""The reward of reasoning and alignment RL: a training grader, watched by exact graders that it never sees.

As an option it adds R1's language-consistency reward to reasoning tasks: the share of the thinking's words that are in
the target language (arXiv 2501.12948, section 2.3.2). Words are told apart by their script, which sees Chinese amid
English but not French; a thinking has too few words to identify more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from noria.evals.benchmarks import grade
from noria.grading import WEAK_TWINS, grader_ref
from noria.grading.monitors import components, distinct_n, gap, language_mix, lengths, outcome_rates
from noria.types import Score, Task, Trace, split_thinking

ACCURACY = "accuracy_reward"  # names the value without the language reward among a score's components
REASONING = ("maths", "code", "logic")
# Ranges of letters by language; those not named are written in Latin letters.
LATIN = ((0x41, 0x24F),)
SCRIPTS = {
    "zh": ((0x3400, 0x9FFF),),
    "ja": ((0x3040, 0x30FF), (0x3400, 0x9FFF)),
    "ko": ((0xAC00, 0xD7AF),),
    "ru": ((0x400, 0x52F),),
    "el": ((0x370, 0x3FF),),
    "ar": ((0x600, 0x6FF),),
    "he": ((0x590, 0x5FF),),
    "hi": ((0x900, 0x97F),),
    "th": ((0xE00, 0xE7F),),
}


class TrainingGrader:
    """Rewards with each domain's own grader, or its named weak twin where it has one (`weak`); on reasoning tasks plus
    `language_weight` times the share of the thinking that is in `language`."""

    def __init__(self, weak: bool, language_weight: float = 0.0, language: str = "en") -> None:
        self.weak, self._language_weight, self._language = weak, language_weight, language

    def grade(self, tasks: Sequence[Task], traces: Sequence[Trace]) -> list[Score]:
        scores = grade([self._weakened(task) for task in tasks], traces)
        if not self._language_weight:
            return scores
        return [
            self._with_language(score, trace) if task.domain in REASONING else score
            for task, trace, score in zip(tasks, traces, scores, strict=True)
        ]

    def monitor(
        self, step: int, tasks: Sequence[Task], traces: Sequence[Trace], scores: Sequence[Score]
    ) -> Mapping[str, float]:
        """What the run is watched by: gap to the exact graders, length, truncation, diversity, language, components."""
        exact = grade(tasks, traces) if self.weak else [without_language(score) for score in scores]
        calls = [[token for node in trace.nodes if node.call for token in node.call.token_ids] for trace in traces]
        right = [score.value is not None and score.value >= 1.0 for score in exact]
        by_domain = {
            f"reward_{domain}": _mean([s.value for s, task in zip(exact, tasks, strict=True) if task.domain == domain])
            for domain in sorted({task.domain for task in tasks})
        }
        measured = gap([without_language(score) for score in scores], exact)
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

    def _with_language(self, score: Score, trace: Trace) -> Score:
        if score.value is None:
            return score
        share = language_consistency(split_thinking(trace.reply)[0], self._language)
        parts = {**score.components, ACCURACY: score.value, "language": share}
        return replace(score, value=score.value + self._language_weight * share, components=parts)

    def _weakened(self, task: Task) -> Task:
        twin = WEAK_TWINS.get(task.grader.name) if self.weak else None
        return replace(task, grader=grader_ref(twin)) if twin else task


def language_consistency(text: str, language: str) -> float:
    """The share of words all of whose letters are in the script of `language`; 1 for a text without words."""
    ranges = SCRIPTS.get(language, LATIN)
    words = re.findall(r"[^\W\d_]+", text)
    inside = [all(any(low <= ord(char) <= high for low, high in ranges) for char in word) for word in words]
    return sum(inside) / len(inside) if inside else 1.0


def without_language(score: Score) -> Score:
    """The score before its language reward was added."""
    return replace(score, value=score.components[ACCURACY]) if ACCURACY in score.components else score


def _mean(values: Sequence[float | None]) -> float:
    graded = [value for value in values if value is not None]
    return sum(graded) / len(graded) if graded else float("nan")
