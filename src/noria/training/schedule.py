"""Learning-rate schedules: pure functions of progress."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["wsd", "cosine", "linear", "constant"]


def rate_at(schedule: Schedule, step: int, steps: int, warmup: int, decay_share: float = 0.4) -> float:
    """The factor on the peak learning rate at `step` of `steps` (0-based).

    wsd: warm-up, stable, then linear to zero over the last `decay_share` of the steps (arXiv 2405.18392; decaying to
    zero rather than a tenth: arXiv 2502.15938). linear: warm-up, then linear to zero. cosine: to a tenth.
    """
    if step < warmup:
        return (step + 1) / warmup
    remaining = (steps - step) / max(1, steps - warmup)
    if schedule == "wsd":
        return min(1.0, (steps - step) / max(1.0, decay_share * steps))
    if schedule == "linear":
        return remaining
    if schedule == "cosine":
        return 0.1 + 0.45 * (1.0 + math.cos(math.pi * (1.0 - remaining)))
    return 1.0
