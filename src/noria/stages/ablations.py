"""Arms of post-training over several seeds from one base model: what each part of the chain is worth.

four_stages    cold start -> reasoning RL -> rejection SFT -> alignment RL, from K demonstrations a family
sft_alone      supervised fine-tuning on the same K demonstrations, for more passes, and nothing after it
sft_unlimited  supervised fine-tuning on many more generated demonstrations; reported apart: no real task has them
no_cold_start  reasoning RL straight from the base model
no_reasoning_rl, no_rejection, no_alignment   the four stages with one of them left out
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from noria.artifacts import Numerics, Step, StepContext
from noria.stages import s5_posttraining as s5
from noria.stages import s6_evaluation as s6

Arm = Literal[
    "four_stages",
    "sft_alone",
    "sft_unlimited",
    "no_cold_start",
    "no_reasoning_rl",
    "no_rejection",
    "no_alignment",
]
REASONING = ("maths", "code", "logic")


class Config(BaseModel):
    """[ablations]: a recipe that has this section runs its arms instead of the nine stages."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    arms: tuple[Arm, ...] = Field(default=("four_stages", "sft_alone", "sft_unlimited", "no_cold_start"), min_length=2)
    seeds: tuple[int, ...] = Field(default=(0, 1, 2, 3, 4), min_length=2, description="seeds of post-training")
    sft_alone_epochs: int = Field(default=8, ge=1, description="passes over the K demonstrations")
    sft_unlimited_demonstrations: int = Field(
        default=1000, ge=1, description="demonstrations a family (or all that it has), seen once"
    )


class Summary(BaseModel):
    arms: tuple[str, ...]
    seeds: tuple[int, ...]


def arms(
    config: Config, posttraining: s5.Config, evaluation: s6.Config, base: Step, registry: Step, threads: int
) -> list[Step]:
    """The steps of every arm and seed, each model's evaluation, and `ablations`: content/ablations.json."""
    steps: list[Step] = []
    evaluations: dict[str, Step] = {}
    for seed in config.seeds:
        for arm in config.arms:
            chain = _chain(arm, config, posttraining, base, seed, threads)
            named = [replace(step, name=f"{step.name}_{arm}_{seed}") for step in chain]
            score = s6.evaluate(evaluation, chain[-1], registry, f"{arm}_{seed}", Numerics(threads=threads))
            evaluations[f"{arm}_{seed}"] = score
            steps += [*(step for step in named if step.key not in {done.key for done in steps}), score]
    summary = Summary(arms=config.arms, seeds=config.seeds)
    return [*steps, Step("ablations", s6.STAGE, "ablations", 1, summary, _summarise, evaluations)]


def _chain(arm: Arm, config: Config, posttraining: s5.Config, base: Step, seed: int, threads: int) -> list[Step]:
    if arm == "sft_unlimited":
        supervised = posttraining.cold_start.model_copy(update={"epochs": 1})
        # It has no use for RL tasks: asking for none leaves a small family's problems to the demonstrations.
        shown = {"demonstrations": config.sft_unlimited_demonstrations, "rl_tasks": 1}
        posttraining = posttraining.model_copy(update={**shown, "cold_start": supervised})
    elif arm == "sft_alone":
        supervised = posttraining.cold_start.model_copy(update={"epochs": config.sft_alone_epochs})
        posttraining = posttraining.model_copy(update={"cold_start": supervised})
    tasks = s5.tasks(posttraining, seed)
    if arm == "no_cold_start":
        return [tasks, s5.reasoning_rl(posttraining, base, tasks, seed, threads)]
    cold_start = s5.cold_start(posttraining, base, tasks, seed, threads)
    chain = [tasks, cold_start]
    if arm in ("sft_alone", "sft_unlimited"):
        return chain
    for stage, step in (
        ("no_reasoning_rl", s5.reasoning_rl),
        ("no_rejection", s5.rejection_sft),
        ("no_alignment", s5.alignment_rl),
    ):
        if arm != stage:
            chain.append(step(posttraining, chain[-1], tasks, seed, threads))
    return chain


def _summarise(context: StepContext) -> Mapping[str, Any]:
    from noria.evals.statistics import mean_interval

    config: Summary = context.config
    accuracy: dict[str, dict[str, list[float]]] = {}
    for arm in config.arms:
        for seed in config.seeds:
            summary = json.loads((context.inputs[f"{arm}_{seed}"].content / "summary.json").read_text())
            by_domain = {name: summary["domains"][name]["accuracy"] for name in REASONING}
            by_domain["all"] = sum(by_domain.values()) / len(by_domain)
            for name, value in by_domain.items():
                accuracy.setdefault(arm, {}).setdefault(name, []).append(value)
    means = {
        arm: {name: mean_interval(values).as_json() for name, values in row.items()} for arm, row in accuracy.items()
    }
    first = config.arms[0]
    differences = {
        arm: {
            name: mean_interval([a - b for a, b in zip(accuracy[first][name], values, strict=True)]).as_json()
            for name, values in accuracy[arm].items()
        }
        for arm in config.arms[1:]
    }
    body = {"accuracy": accuracy, "means": means, "first_minus": differences, "first": first, "seeds": config.seeds}
    (context.content / "ablations.json").write_text(json.dumps(body, indent=1, sort_keys=True) + "\n")
    return {f"{first}_minus_{arm}": row["all"]["estimate"] for arm, row in differences.items()}
