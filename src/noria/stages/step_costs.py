"""What a training step costs: tokens a second, and the most memory that the process has held since training began.

They are observed and go to the run database alone: no history, no metric of an artifact, no key knows a clock.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class StepCosts:
    """Tell it of each step as it ends. Of several processes it sees the seconds, but no memory: they are others'."""

    def __init__(self, processes: int = 1) -> None:
        self._ended: float | None = None
        self._knows_peak = processes == 1 and reset_peak()

    def of_step(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """`tokens_per_second`: the batch's tokens over all seconds since the step before ended, so that sampling,
        grading and checkpoints count. The first step of a process has none, for what came before it is no step.
        `peak_memory_bytes`: resident, all of the process, libraries included."""
        before, self._ended = self._ended, time.monotonic()
        found: dict[str, float] = {}
        tokens = metrics.get("tokens", 0.0)
        if before is not None and tokens and self._ended > before:
            found["tokens_per_second"] = tokens / (self._ended - before)
        if self._knows_peak and (peak := peak_bytes()):
            found["peak_memory_bytes"] = float(peak)
        return found


def reset_peak() -> bool:
    """From here on the peak counts (Linux, proc(5): clear_refs). False where it can't be set back."""
    try:
        CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_bytes() -> int | None:
    """Of this process's resident memory; None where the system does not say."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
