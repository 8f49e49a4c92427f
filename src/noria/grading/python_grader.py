"""A user's grading function, run in the sandbox: it sees texts, and what it returns is checked out here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from noria.sandbox import Candidate, Limits, run_functions

LIMITS = Limits(cpu_seconds=5, wall_seconds=15.0)


class PythonFailed(ValueError):
    """The grader gave no number. `is_ours`: the sandbox failed, and not the grader."""

    def __init__(self, message: str, is_ours: bool = False) -> None:
        super().__init__(message)
        self.is_ours = is_ours


def run_python(source: str, sample: Mapping[str, Any], item: Mapping[str, Any]) -> float:
    """grade(sample, item) of `source`. Raises PythonFailed where it raises, hangs, or returns no finite number."""
    (outcome,) = run_functions([Candidate(source, "grade", ((dict(sample), dict(item)),))], LIMITS)
    if outcome.status != "ok":
        said = f"grade() ended in {outcome.status}: {outcome.error}"
        if outcome.status == "timeout":
            said = (
                f"grade() did not end: it has {LIMITS.cpu_seconds} seconds to compute, {LIMITS.wall_seconds:g} in all"
            )
        raise PythonFailed(said, outcome.status == "sandbox")
    value = (outcome.values or [None])[0]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PythonFailed(f"grade() returned {value!r:.80}, which is no number")
    if not math.isfinite(value):
        raise PythonFailed(f"grade() returned {value}, which is no finite number")
    return float(value)
