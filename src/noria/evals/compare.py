"""Models compared on the same items: paired differences with intervals, and p-values that allow for many rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from noria.evals.statistics import holm, mcnemar, paired_difference


def compare_items(results: Mapping[str, Sequence[Mapping[str, Any]]], order: Sequence[str]) -> list[dict[str, Any]]:
    """One row a consecutive pair of models and domain, from rows of items.jsonl.

    `difference` = accuracy of `to` minus that of `from`, over tasks that both graded (`n`; `unpaired` were left out).
    The interval is the paired t interval at 95%, as in the verdict (deployment/verdict.py), so that one difference has
    one interval wherever it is shown; it is not adjusted for the number of rows, `p_holm` is. Several samples a task:
    each task's mean first, so that n counts tasks; McNemar's test is then on tasks whose majority changed.
    """
    rows: list[dict[str, Any]] = []
    for old_name, new_name in pairwise(order):
        for domain in sorted({row["domain"] for row in results[new_name]}):
            rows.append(_row(old_name, new_name, domain, results[old_name], results[new_name]))
    adjusted = holm({str(place): row["p"] for place, row in enumerate(rows)})
    return [row | {"p_holm": adjusted[str(place)]} for place, row in enumerate(rows)]


def _row(
    old_name: str,
    new_name: str,
    domain: str,
    old_rows: Sequence[Mapping[str, Any]],
    new_rows: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    old, new = _by_task(old_rows, domain), _by_task(new_rows, domain)
    shared = sorted(old.keys() & new.keys())
    left, right = [new[task] for task in shared], [old[task] for task in shared]
    solved_new, solved_old = [value > 0.5 for value in left], [value > 0.5 for value in right]
    pairs = list(zip(solved_new, solved_old, strict=True))
    known = paired_difference(left, right).as_json()
    return {
        "from": old_name,
        "to": new_name,
        "domain": domain,
        "n": len(shared),
        "unpaired": len(old.keys() ^ new.keys()),
        "from_accuracy": float(np.mean(right)) if shared else None,
        "to_accuracy": float(np.mean(left)) if shared else None,
        "difference": known["estimate"],
        "low": known["low"],
        "high": known["high"],
        "gained": sum(a and not b for a, b in pairs),
        "lost": sum(b and not a for a, b in pairs),
        "p": mcnemar(solved_new, solved_old),
    }


def _by_task(rows: Sequence[Mapping[str, Any]], domain: str) -> dict[str, float]:
    """Mean correctness of each task over its graded samples."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["domain"] == domain and row["correct"] is not None:
            found.setdefault(row["task_id"], []).append(float(row["correct"]))
    return {task: sum(values) / len(values) for task, values in found.items()}
