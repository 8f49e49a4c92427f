"""How far a step is: what an observer of a run is told, and the rate and time left that follow from it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

Status = Literal["reused", "waiting", "running", "publishing", "made", "failed", "interrupted"]


@dataclass(frozen=True)
class Progress:
    """One change in the life of a step. `rate` is `unit` a second; `seconds_left` is None until it can be told.

    `message` says why it runs, what it waits for or what went wrong; `note` is the step's own word on where it is.
    """

    step_name: str
    stage: str
    key: str
    status: Status
    message: str = ""
    done: float = 0.0
    total: float = 0.0
    unit: str = ""
    note: str = ""
    rate: float | None = None
    seconds_left: float | None = None
    seconds: float = 0.0


class Meter:
    """Turns reports of a step into rate and time left. Counts from the first report, so resumed work adds no speed."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self._since = self.started
        self._first = 0.0
        self._counted: tuple[float, str] | None = None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def read(self, done: float, total: float, unit: str) -> tuple[float | None, float | None]:
        """(rate, seconds left). A new total or unit is a new phase of the step and starts a new measurement."""
        now = time.monotonic()
        if self._counted != (total, unit) or done < self._first:
            self._counted, self._first, self._since = (total, unit), done, now
            return None, None
        if done == self._first or now == self._since:
            return None, None
        rate = (done - self._first) / (now - self._since)
        return rate, max(total - done, 0.0) / rate
