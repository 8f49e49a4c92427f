"""How metrics of training steps are told to people: under which name, and how a run's many values become one.
Scripts see the names that histories keep.

`heldout` of a training step is no result: it is a probe, one greedy reply to some of the held-out tasks, that only
shows the course of the training. What the verdict compares is the evaluations' domain `heldout`: pass@1, the mean of
several samples of every held-out task.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

LAST_SHARE = 0.1  # a metric's end is the mean over this share of its steps: single steps are noise
# What a step cost is no course with an end: the usual speed, the most memory.
OVER_ALL_STEPS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "tokens_per_second": statistics.median,
    "peak_memory_bytes": max,
}
PROBE = "probe accuracy, greedy"
SHOWN_AS: Mapping[str, str] = {"heldout": PROBE}


def shown_as(metric: str) -> str:
    return SHOWN_AS.get(metric, metric)


def end(metric: str, values: Sequence[float | None]) -> float | None:
    """How a metric ended; None where it was never measured."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    if metric in OVER_ALL_STEPS:
        return OVER_ALL_STEPS[metric](known)
    return statistics.fmean(known[-max(1, round(LAST_SHARE * len(known))) :])


def written(metric: str, value: float | None) -> str:
    from noria.studio.live import number  # late: its tables cost more than most commands need

    if value is None:
        return "-"
    return f"{number(value)}B" if metric.endswith("_bytes") else f"{value:.6g}"
