"""Schedules of learning rate and batch, and the rule for weight decay: pure functions of progress and of N, D, B.

N parameters, D training tokens, B tokens a step. How B follows from D is in `planning/budget.py`.
"""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["wsd", "wsd_s", "cosine", "linear", "constant"]


def rate_at(schedule: Schedule, step: int, steps: int, warmup: int, decay_share: float = 0.4) -> float:
    """The factor on the peak learning rate at `step` of `steps` (0-based).

    wsd: warm-up, stable, then linear to zero over the last `decay_share` of the steps (arXiv 2405.18392; decaying to
    zero rather than a tenth: arXiv 2502.15938). linear: warm-up, then linear to zero. cosine: to a tenth.
    wsd_s (arXiv 2410.05192): wsd again and again, for a run whose end may move (`decay_ends`).
    """
    if step < warmup:
        return (step + 1) / warmup
    remaining = (steps - step) / max(1, steps - warmup)
    if schedule == "wsd":
        return min(1.0, (steps - step) / max(1.0, decay_share * steps))
    if schedule == "wsd_s":
        start, end = next(span for span in decay_ends(steps, warmup) if step < span[1] or span[1] == steps)
        return min(1.0, (end - step) / max(1.0, decay_share * (end - start)))
    if schedule == "linear":
        return remaining
    if schedule == "cosine":
        return 0.1 + 0.45 * (1.0 + math.cos(math.pi * (1.0 - remaining)))
    return 1.0


def decay_ends(steps: int, warmup: int) -> list[tuple[int, int]]:
    """The spans (start, end) of wsd_s: each ends at twice the steps of the one before, the last at `steps`.

    At each end the rate has fallen to zero over the span's last `decay_share`, so the weights there are those of a
    finished run of that length; then training goes on from them at full rate. Doubling makes the decays cost a fixed
    share of all steps, and gives a point (N, D) of a scaling law each. The first end lies after four warm-ups at least.
    """
    ends = [steps]
    while ends[0] // 2 >= max(1, 4 * warmup):
        ends.insert(0, ends[0] // 2)
    return list(zip([0, *ends], ends, strict=False))


def ramped_rows(step: int, rows: int, ramp_steps: int, first_share: float = 0.25) -> int:
    """Rows of the batch at `step`: from `first_share` of `rows`, linear over `ramp_steps`, then `rows`.

    The critical batch is small at first and grows as training goes on (arXiv 1812.06162, section 4; measured for
    language models in arXiv 2505.23971), so a full batch early spends tokens that a smaller one would not need. The
    quarter is a choice, not a fit. The rate stays as it is: its own warm-up covers the ramp's start.
    """
    if step >= ramp_steps:
        return rows
    return max(1, round(rows * (first_share + (1.0 - first_share) * step / ramp_steps)))


def weight_decay_for(
    parameters: float,
    train_tokens: float,
    batch_tokens: float,
    learning_rate: float,
    reference_tau: float,
    reference_tokens_per_parameter: float = 20.0,
) -> float:
    """The decay of a run, from the time-scale that was best in a smaller one (arXiv 2505.13738).

    AdamW's weights average updates over 1/(rate decay) steps, a share tau = B/(rate decay D) of the run's D/B.
    The best tau falls with the tokens a parameter, as (D/N)^-0.527; so, solved for the decay,

        decay = B / (rate D tau),   tau = reference_tau ((D/N) / reference)^-0.527

    The exponent was fitted on dense models under muP with AdamW; for Muon's part it is an assumption.
    """
    ratio = train_tokens / parameters / reference_tokens_per_parameter
    tau = reference_tau * ratio**-0.527
    return batch_tokens / (learning_rate * train_tokens * tau)
