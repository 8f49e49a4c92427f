"""The guard's judgement, as functions of values: is this step to be trusted, and if not, what is to blame.

Robust statistics (median and median absolute deviation) over the accepted steps of a window. Rejected steps are no part
of it: with a mean and a deviation that include them, one outlier lifts the threshold to about half its own height.

S steps, R ranks.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Verdict = Literal["accept", "outlier", "spike", "not finite"]
Cause = Literal["hardware", "data or optimiser", "not known"]

NORMAL = 1.4826  # median absolute deviation -> standard deviation, for a normal distribution
# A window may be steadier than a run is: deviations are not taken below these (nats a token; log of the norm).
LEAST_LOSS_DEVIATION, LEAST_LOG_NORM_DEVIATION = 0.02, 0.1


class GuardConfig(BaseModel):
    """When a step is rejected and what follows. Part of a run's identity: it decides which steps count."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    spikes: bool = Field(
        default=False,
        description="reject outliers of loss and gradient norm, for losses of a steady scale (pretraining); without it "
        "they are replayed, in case a machine is to blame, and kept. Steps that are not finite are always rejected",
    )
    # The largest of 4 x 2,000 clean steps of a byte model at rates from 0.005 to 0.04: 4.9 (loss) and 11.3 (norm).
    loss_deviations: float = Field(default=12.0, gt=0, description="robust standard deviations above the median")
    norm_deviations: float = Field(default=20.0, gt=0, description="the same, of the logarithm of the gradient norm")
    window_steps: int = Field(default=128, ge=8, description="accepted steps that a step is compared with")
    least_steps: int = Field(default=24, ge=4, description="accepted steps before outliers are judged at all")
    patience_steps: int = Field(default=3, ge=1, description="rejected steps in a row before rolling back")
    anchor_steps: int = Field(
        default=100, ge=1, description="a checkpoint to roll back to every so many steps (PaLM went back about 100)"
    )
    lead_steps: int = Field(default=4, ge=0, description="steps before the first rejected one that are left out too")
    skip_steps: int = Field(default=32, ge=1, description="steps from the first rejected one on that are left out")
    make_up: bool = Field(
        default=False,
        description="steps left out are made up for with the data after the last step; for data without an end "
        "(pretraining): the run then takes as many steps, at the same rates, as an undisturbed one",
    )
    rollbacks: int = Field(default=3, ge=0, description="how often a run may roll back before it gives up")
    replay_steps: int = Field(
        default=200, ge=0, description="every so many steps the gradient is computed twice: costs 0.5% (0: never)"
    )
    replica_steps: int = Field(
        default=10, ge=0, description="every so many steps replicas compare their weights (0: never)"
    )


@dataclass(frozen=True)
class Event:
    """One intervention or finding of the guard, with what it rests on. `step` counts from 0."""

    kind: str  # skipped_update, hardware, rolled_back, straggler
    step: int
    cause: Cause
    message: str
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class WorkerFault(RuntimeError):
    """A worker computes or stores wrongly. A launcher should restart from the last checkpoint without it.

    `ranks` are those to blame (all that are possible, where the evidence can't tell), `host` is of the first.
    """

    def __init__(self, message: str, step: int, ranks: Sequence[int], host: str = "") -> None:
        super().__init__(message)
        self.step, self.ranks, self.host = step, tuple(ranks), host


def judge(
    accepted_S: Sequence[tuple[float, float]], loss: float, norm: float, config: GuardConfig
) -> tuple[Verdict, dict[str, Any]]:
    """(verdict, evidence) of a step by (loss, gradient norm) of earlier accepted steps, oldest first.

    An "outlier" is to be replayed, and kept if the replay agrees; a "spike" is rejected. Only the high side is suspect:
    a batch that is easy harms nothing.
    """
    evidence: dict[str, Any] = {"loss": loss, "gradient_norm": norm}
    if not (math.isfinite(loss) and math.isfinite(norm)):
        return "not finite", evidence
    window = accepted_S[-config.window_steps :]
    if len(window) < config.least_steps or norm == 0.0:
        return "accept", evidence
    evidence |= deviations(window, loss, norm)
    if evidence["loss_deviations"] <= config.loss_deviations and evidence["norm_deviations"] <= config.norm_deviations:
        return "accept", evidence
    return ("spike" if config.spikes else "outlier"), evidence


def deviations(window_S: Sequence[tuple[float, float]], loss: float, norm: float) -> dict[str, float]:
    """How many robust standard deviations a loss and the log of a norm lie above the medians of a window."""
    losses, norms = zip(*window_S, strict=True)
    logs = [math.log(value) for value in norms]
    return {
        "loss_deviations": _above(losses, loss, LEAST_LOSS_DEVIATION),
        "norm_deviations": _above(logs, math.log(norm), LEAST_LOG_NORM_DEVIATION),
    }


def accepted_steps(history: Sequence[Mapping[str, float]], window_steps: int) -> list[tuple[float, float]]:
    """(loss, gradient norm) of the last accepted steps of a history that had a gradient, oldest first."""
    found: list[tuple[float, float]] = []
    for row in reversed(history):
        if len(found) == window_steps:
            break
        if not row["skipped"] and row["gradient_norm"] > 0.0:
            found.append((total_loss(row), row["gradient_norm"]))
    return found[::-1]


def total_loss(row: Mapping[str, float]) -> float:
    """The sum of a step's loss terms."""
    return sum(value for name, value in row.items() if name.startswith("loss_"))


def rejected_in_a_row(history: Sequence[Mapping[str, float]]) -> int:
    """How many of the last steps were computed and rejected; those left out without being computed end the row."""
    count = 0
    for row in reversed(history):
        if not row["skipped"] or row.get("left_out"):
            break
        count += 1
    return count


def range_to_leave_out(first_rejected: int, anchor: int, config: GuardConfig) -> tuple[int, int]:
    """[start, stop) of the steps left out when a run goes back to `anchor`: those around the first rejected one.

    PaLM (arXiv 2204.02311, section 5.1) went back about 100 steps and skipped 200 to 500 batches; the same data
    elsewhere in training did no harm, so leaving them out costs only their tokens.
    """
    return max(anchor, first_rejected - config.lead_steps), first_rejected + config.skip_steps


def odd_ones_out(fingerprints_R: Sequence[int]) -> tuple[int, ...]:
    """The ranks that differ from the majority; all of them where there is no majority; none where all agree."""
    counts = {value: fingerprints_R.count(value) for value in set(fingerprints_R)}
    if len(counts) == 1:
        return ()
    most = max(counts.values())
    if most * 2 <= len(fingerprints_R):
        return tuple(range(len(fingerprints_R)))
    return tuple(rank for rank, value in enumerate(fingerprints_R) if counts[value] != most)


def stragglers(seconds_SR: Sequence[Sequence[float]], ratio: float = 1.5) -> dict[int, float]:
    """Ranks whose median step took over `ratio` times the median of the others, with that ratio."""
    medians = [statistics.median(column) for column in zip(*seconds_SR, strict=True)]
    slow = {}
    for rank, own in enumerate(medians):
        others = medians[:rank] + medians[rank + 1 :]
        if others and own > ratio * statistics.median(others):
            slow[rank] = own / statistics.median(others)
    return slow


def _above(values: Sequence[float], value: float, least: float) -> float:
    centre = statistics.median(values)
    spread = NORMAL * statistics.median(abs(other - centre) for other in values)
    return (value - centre) / max(spread, least)
