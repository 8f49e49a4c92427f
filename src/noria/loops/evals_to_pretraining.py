"""Loop B: what the verdict's chosen model is bad at gets more weight in the next pretraining mixture, by a rule.

The rule. For a family f with n items, let high_f be the upper end of its 95% Wilson interval: what is certainly missing
is deficit_f = max(0, target - high_f). A source s that teaches families F(s) gets

    w'_s = w_s * min(most, exp(strength * mean over F(s) of deficit_f)),      then all weights are scaled to sum 1.

A family measured on few items has a wide interval and so moves little. Sources that teach no measured family keep
their weight up to the scaling, but never fall below `least_share` of what they had: a mixture of exercises alone
forgets language.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from noria.artifacts import Artifact, Step, StepContext

RULE = (
    "w' = w * min(most, exp(strength * mean deficit)), deficit = max(0, target - upper 95% Wilson bound) over the "
    "families that a source teaches; scaled to sum 1; no source below least_share of its weight"
)


class Config(BaseModel):
    """The rule's numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: float = Field(
        default=0.9, gt=0, le=1, description="share of right answers from which a family needs no more data"
    )
    strength: float = Field(
        default=1.5, ge=0, le=10, description="0 changes nothing; a deficit of 0.4 at 1.5 gives a factor 1.8"
    )
    most: float = Field(default=2.0, ge=1, le=10, description="the largest factor before scaling")
    least_share: float = Field(
        default=0.5, ge=0, le=1, description="no source falls below this share of its former weight"
    )


class MixtureConfig(Config):
    """The rule with what it is applied to."""

    before: dict[str, float] = Field(
        default_factory=dict, description="weights of turn 1; empty: from the input mixture"
    )
    teaches: dict[str, tuple[str, ...]] = Field(description="source -> families that its documents teach")


@dataclass(frozen=True)
class MixtureChange:
    """New weights with the evidence for each."""

    before: Mapping[str, float]
    after: Mapping[str, float]
    deficits: Mapping[str, float]
    factors: Mapping[str, float]


def evals_to_pretraining(
    config: Config,
    verdict: Step | Artifact,
    before: Mapping[str, float],
    teaches: Mapping[str, Sequence[str]],
    shards: Step | Artifact | None = None,
    turn: int = 1,
) -> Step:
    """The next turn's mixture from the verdict's results by family: content/mixture.json.

    `before` are the weights by source, or empty to read them from the shards.json of `shards`.
    """
    families = {source: tuple(names) for source, names in teaches.items()}
    chosen = MixtureConfig(**config.model_dump(), before=dict(before), teaches=families)
    inputs = {"verdict": verdict, **({"shards": shards} if shards is not None else {})}
    return Step(f"evals_to_pretraining_{turn}", "loop_b", "mixture", 1, chosen, _run, inputs)


def reweigh(
    before: Mapping[str, float],
    results: Mapping[str, Mapping[str, float]],
    teaches: Mapping[str, Sequence[str]],
    config: Config,
) -> MixtureChange:
    """The rule. `results[family]` has `high`, the upper bound. Raises ValueError on weights that can't be scaled."""
    if (
        not before
        or any(not math.isfinite(weight) or weight < 0 for weight in before.values())
        or not sum(before.values())
    ):
        raise ValueError(f"the weights before must be at least 0 and not all 0; got {dict(before)}")
    unknown = sorted(set(teaches) - set(before))
    if unknown:
        raise ValueError(f"no source {', '.join(unknown)} in the mixture; it has {', '.join(sorted(before))}")
    deficits = {name: max(0.0, config.target - row["high"]) for name, row in sorted(results.items())}
    factors = {}
    for source in before:
        taught = [deficits[name] for name in teaches.get(source, ()) if name in deficits]
        factors[source] = min(config.most, math.exp(config.strength * sum(taught) / len(taught))) if taught else 1.0
    total = sum(before.values())
    scaled = {source: weight / total for source, weight in before.items()}
    floors = {source: config.least_share * weight for source, weight in scaled.items()}
    after = _scaled_above({source: scaled[source] * factors[source] for source in scaled}, floors)
    return MixtureChange(dict(scaled), {name: round(weight, 9) for name, weight in after.items()}, deficits, factors)


def _scaled_above(weights: Mapping[str, float], floors: Mapping[str, float]) -> dict[str, float]:
    """`weights` scaled to sum 1 with none below its floor (floors sum to at most 1)."""
    held: dict[str, float] = {}
    while True:
        free = {name: weight for name, weight in weights.items() if name not in held}
        room = 1.0 - sum(held.values())
        total = sum(free.values())
        scaled = {name: weight / total * room if total else 0.0 for name, weight in free.items()}
        low = {name: floors[name] for name, weight in scaled.items() if weight < floors[name]}
        if not low:
            return {name: held.get(name, scaled.get(name, 0.0)) for name in weights}
        held |= low


def _run(context: StepContext) -> Mapping[str, Any]:
    config: MixtureConfig = context.config
    found = json.loads((context.inputs["verdict"].content / "verdict.json").read_text())
    before = config.before
    if not before:
        before = json.loads((context.inputs["shards"].content / "shards.json").read_text())["weights"]
    teaches = {source: names for source, names in config.teaches.items() if source in before}
    change = reweigh(before, found["families"], teaches, config)
    body = {
        "weights": change.after,
        "before": change.before,
        "after": change.after,
        "rule": RULE,
        "deficits": change.deficits,
        "factors": change.factors,
        "measured": {"model": found["chosen"], "families": found["families"]},
    }
    (context.content / "mixture.json").write_text(json.dumps(body, indent=1, sort_keys=True) + "\n")
    moved = sum(abs(change.after[name] - change.before[name]) for name in change.before) / 2
    return {"moved_share": round(moved, 6), "sources": len(change.after)}
