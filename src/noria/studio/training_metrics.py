"""How metrics of training steps are told to people; scripts see the names that histories keep.

`heldout` of a training step is no result: it is a probe, one greedy reply to some of the held-out tasks, that only
shows the course of the training. What the verdict compares is the evaluations' domain `heldout`: pass@1, the mean of
several samples of every held-out task.
"""

from __future__ import annotations

from collections.abc import Mapping

PROBE = "probe accuracy, greedy"
SHOWN_AS: Mapping[str, str] = {"heldout": PROBE}


def shown_as(metric: str) -> str:
    return SHOWN_AS.get(metric, metric)
