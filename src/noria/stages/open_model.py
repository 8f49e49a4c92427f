"""Journey 2: an open model, tasks and a grader become a better model and the proof of it.

model -> tasks -> evaluation before -> GRPO with monitors -> evaluation after -> paired comparison -> verdict -> release
                                                         \\-> the folder that `transformers` loads
"""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from noria.artifacts import Numerics, Step, StepContext
from noria.stages import open_model_source as source
from noria.stages import open_model_tasks as task_sets
from noria.stages import s6_evaluation as s6
from noria.stages import s9_deployment as s9
from noria.stages.open_model_evaluation import EvaluationSection, candidates, evaluated, metrics_of
from noria.stages.open_model_replies import load, roller, room_of
from noria.stages.open_model_signal import FirstStep, refuse_without_signal
from noria.stages.precision import AskedPrecision, Computing, Precision, precision_for

if TYPE_CHECKING:
    from noria.model import Transformer
    from noria.types import Score, Task, Trace

STAGE = "s5_posttraining"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Grpo(_Section):
    steps: int = Field(default=30, ge=1, description="optimiser steps; each samples fresh rollouts")
    prompts: int = Field(default=16, ge=1, description="tasks a step")
    group: int = Field(default=8, ge=2, description="samples a task")
    max_tokens: int = Field(default=32, ge=1, description="sampled tokens a reply")
    learning_rate: float = Field(default=1e-5, gt=0, le=1)
    muon: bool = Field(default=False, description="Muon for hidden matrices; false: AdamW, as open models were trained")
    advantage: Literal["mean", "std"] = Field(default="std", description="see posttraining/grpo.py")
    reference_kl: float = Field(default=0.0, ge=0, description="weight of the KL to the imported model")
    precision: AskedPrecision = Field(
        default="auto",
        description="of products in training and its rollouts; auto: bfloat16 where the processor has units for it",
    )
    micro_batch_rows: int = Field(default=16, ge=1, description="rows a pass; bounds memory, not the result")
    probe_every: int = Field(default=5, ge=0, description="steps between looks at held-out tasks; 0: none")
    probe_tasks: int = Field(
        default=48, ge=1, description="held-out tasks of a look; they are watched, never trained on"
    )


class GrpoSection(_Grpo, Computing):
    """[grpo] of a recipe for an open model."""


class ReleaseSection(_Section):
    """[release]: what the trained model must show against the imported one, beside being better on held-out tasks."""

    unseen_margin: float = Field(default=0.1, gt=0, le=1, description="loss of accuracy on unseen families allowed")
    format_margin: float = Field(default=0.1, gt=0, le=1, description="loss of instruction format allowed")
    text_margin: float = Field(
        default=0.01,
        gt=0,
        le=1,
        description="loss of probability a byte, 2 ** -(bits a byte), on ordinary text allowed",
    )
    floor: float = Field(default=0.1, ge=0, le=1, description="held-out accuracy that the lower bound must exceed")


class ReinforcedIdentity(_Grpo):
    precision: Precision
    graders: dict[str, str] = Field(description="version of each grader: another reward makes another model")
    seed: int


class ComputingIdentity(ReinforcedIdentity, Computing):
    """Used where a setting other than `precision` differs from its default; without one a recipe keeps its key."""

    precision: Precision


def journey(
    model: Step,
    tasks: Step,
    grpo: GrpoSection,
    evaluation: EvaluationSection,
    release: ReleaseSection,
    grader: task_sets.TaskGrader,
    seed: int,
    threads: int,
) -> list[Step]:
    """All steps from an imported model and its tasks to a release, inputs before what reads them."""
    numerics = Numerics(threads=threads)
    first = FirstStep(grpo.prompts, grpo.group, grpo.max_tokens, precision_for(grpo.precision), seed)
    before = evaluated(evaluation, model, tasks, "before", grader, numerics, first)
    trained = reinforced(grpo, model, tasks, grader, seed, numerics)
    after = evaluated(evaluation, trained, tasks, "after", grader, numerics)
    comparison = s6.compare(s6.Config.model_validate({}), {"before": before, "after": after})
    judged = candidates(model, trained, before, after, tasks, grader)
    rules = s9.Config(verdict=rules_of(release, grader))
    verdict = s9.verdict(rules, judged)
    released = s9.release(rules, verdict, {"grpo": trained}, model)
    return [model, tasks, before, trained, after, comparison, source.exported(trained), judged, verdict, released]


def reinforced(
    config: GrpoSection, model: Step, tasks: Step, grader: task_sets.TaskGrader, seed: int, numerics: Numerics
) -> Step:
    """A model folder, with history.json (a row a step: the reward and what it was watched by)."""
    own = {"precision": precision_for(config.precision), "graders": grader.versions, "seed": seed}
    chosen = {**config.model_dump(), **own}
    plain = {name: value for name, value in chosen.items() if name in ReinforcedIdentity.model_fields}
    is_plain = all(chosen[name] == Computing.model_fields[name].default for name in chosen if name not in plain)
    identity = ReinforcedIdentity(**plain) if is_plain else ComputingIdentity(**chosen)
    inputs = {"model": model, "tasks": tasks}
    return Step("grpo", STAGE, "model", 1, identity, partial(_reinforce, grader=grader), inputs, numerics)


def rules_of(release: ReleaseSection, grader: task_sets.TaskGrader) -> s9.VerdictConfig:
    margins = {"unseen": release.unseen_margin, "format": release.format_margin, "text": release.text_margin}
    rails = tuple(
        s9.RailConfig(metric=name, margin=margins[name])  # type: ignore[arg-type]
        for name in metrics_of(grader)
        if name in margins
    )
    return s9.VerdictConfig(primary_floor=release.floor, guardrails=rails)


# -- training --


def _reinforce(context: StepContext, grader: task_sets.TaskGrader) -> Mapping[str, Any]:
    from noria.harness.spread import spread
    from noria.posttraining import GrpoConfig, improve
    from noria.posttraining.watch import watcher
    from noria.stages.training_progress import checkpoint_seconds, training_progress

    config: ReinforcedIdentity = context.config
    folder = context.inputs["model"].content
    progress = training_progress(context)  # sets the threads, which loading a model already uses
    model, tokenizer = load(folder)
    progress = replace(progress, checkpoint_seconds=checkpoint_seconds(model))
    reference = copy.deepcopy(model).eval()
    tasks = task_sets.read(context.inputs["tasks"].content, "train")
    held_out = spread(task_sets.read(context.inputs["tasks"].content, "heldout"), config.probe_tasks)
    room = room_of([*tasks, *held_out], tokenizer, config.max_tokens, model)

    roll, greedy = (
        roller(model, tokenizer, room, config.max_tokens, temperature, precision=config.precision)
        for temperature in (1.0, 0.0)
    )

    def probe() -> float:
        traces = greedy(held_out, [0] * len(held_out))
        return _share_right(grader.grade(held_out, traces), grader.threshold)

    def tell(step: int, asked: Sequence[Task], traces: Sequence[Trace], scores: Sequence[Score]) -> None:
        refuse_without_signal(scores, step)
        context.event("samples", f"step {step}", step=step, samples=_samples(asked, traces, scores))

    settings = GrpoConfig(**config.model_dump(include=set(GrpoConfig.model_fields)))
    history = improve(
        model,
        tasks,
        roll,
        grader.grade,
        settings,
        tokenizer.pad,
        config.seed,
        progress,
        monitor=watcher(model, reference, probe, config.probe_every, tell),
        reference=reference if config.reference_kl else None,
    )
    _publish(context.content, model, folder)
    (context.content / "history.json").write_text(json.dumps(history) + "\n")
    fifth = max(1, len(history) // 5)
    return {
        "steps": len(history),
        "precision": config.precision,
        "reward_first": statistics.fmean(row["reward"] for row in history[:fifth]),
        "reward_last": statistics.fmean(row["reward"] for row in history[-fifth:]),
        "kl": history[-1].get("kl", 0.0),
    }


def _publish(content: Path, model: Transformer, origin: Path) -> None:
    from noria.model import save_model

    save_model(content, model, origin / "tokenizer.json")
    source.copy_chat_files(origin, content)


def _share_right(scores: Sequence[Score], threshold: float) -> float:
    graded = [score.value >= threshold for score in scores if score.value is not None]
    return sum(graded) / len(graded) if graded else float("nan")


def _samples(tasks: Sequence[Task], traces: Sequence[Trace], scores: Sequence[Score], most: int = 3) -> list[Any]:
    """A few of a step's replies for people, of different tasks."""
    picked = range(0, len(tasks), max(1, len(tasks) // most))
    return [
        {
            "prompt": tasks[place].messages[-1].content[-200:],
            "reply": traces[place].reply[:200],
            "value": scores[place].value,
        }
        for place in list(picked)[:most]
    ]
