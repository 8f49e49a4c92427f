"""Journey 2: an open model, tasks and a grader become a better model and the proof of it.

model -> tasks -> evaluation before -> GRPO with monitors -> evaluation after -> paired comparison -> verdict -> release
                                                         \\-> the folder that `transformers` loads
"""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from noria.artifacts import Artifact, Numerics, Step, StepContext
from noria.stages import open_model_source as source
from noria.stages import open_model_tasks as task_sets
from noria.stages import s6_evaluation as s6
from noria.stages import s9_deployment as s9

if TYPE_CHECKING:
    from noria.data.chat_tokenizer import ChatTokenizer
    from noria.evals.benchmarks import Item
    from noria.model import Transformer
    from noria.posttraining import Roll
    from noria.training.compute import Precision
    from noria.types import Score, Task, Trace

STAGE = "s5_posttraining"
TEXT_BYTES = 24_000


class NoSignal(ValueError):
    """The rewards say nothing, so training would only cost."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GrpoSection(_Section):
    """[grpo] of a recipe for an open model."""

    steps: int = Field(default=30, ge=1, description="optimiser steps; each samples fresh rollouts")
    prompts: int = Field(default=16, ge=1, description="tasks a step")
    group: int = Field(default=8, ge=2, description="samples a task")
    max_tokens: int = Field(default=32, ge=1, description="sampled tokens a reply")
    learning_rate: float = Field(default=1e-5, gt=0, le=1)
    muon: bool = Field(default=False, description="Muon for hidden matrices; false: AdamW, as open models were trained")
    advantage: Literal["mean", "std"] = Field(default="std", description="see posttraining/grpo.py")
    reference_kl: float = Field(default=0.0, ge=0, description="weight of the KL to the imported model")
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of training's products; bfloat16 is faster where the processor has it"
    )
    micro_batch_rows: int = Field(default=16, ge=1, description="rows a pass; bounds memory, not the result")
    probe_every: int = Field(default=5, ge=0, description="steps between looks at held-out tasks; 0: none")
    probe_tasks: int = Field(
        default=48, ge=1, description="held-out tasks of a look; they are watched, never trained on"
    )


class EvaluationSection(_Section):
    """[evaluation] of a recipe for an open model."""

    max_tokens: int = Field(default=32, ge=1, description="sampled tokens a reply to a task")
    format_tokens: int = Field(default=48, ge=8, description="sampled tokens a reply to an instruction about form")
    temperature: float = Field(default=1.0, gt=0.0, le=2.0, description="of the samples; greedy is measured besides")
    samples: int = Field(default=4, ge=1, le=64, description="samples a task; pass@1 is their mean")
    rows: int = Field(default=64, ge=1, le=1024, description="replies decoded together")
    kept_traces: int = Field(default=8, ge=0, description="traces kept whole, a family, to browse")


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


class ReinforcedIdentity(GrpoSection):
    graders: dict[str, str] = Field(description="version of each grader: another reward makes another model")
    seed: int


class EvaluatedIdentity(EvaluationSection):
    graders: dict[str, str]
    text: str = Field(description="digest of the guard's text")


class CandidatesIdentity(BaseModel):
    metrics: tuple[str, ...]


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
    before = evaluated(evaluation, model, tasks, "before", grader, numerics)
    trained = reinforced(grpo, model, tasks, grader, seed, numerics)
    after = evaluated(evaluation, trained, tasks, "after", grader, numerics)
    comparison = s6.compare(s6.Config.model_validate({}), {"before": before, "after": after})
    judged = candidates(model, trained, before, after, grader)
    rules = s9.Config(verdict=rules_of(release, grader))
    verdict = s9.verdict(rules, judged)
    released = s9.release(rules, verdict, {"grpo": trained}, model)
    return [model, tasks, before, trained, after, comparison, source.exported(trained), judged, verdict, released]


def reinforced(
    config: GrpoSection, model: Step, tasks: Step, grader: task_sets.TaskGrader, seed: int, numerics: Numerics
) -> Step:
    """A model folder, with history.json (a row a step: the reward and what it was watched by)."""
    identity = ReinforcedIdentity(**config.model_dump(), graders=grader.versions, seed=seed)
    inputs = {"model": model, "tasks": tasks}
    return Step("grpo", STAGE, "model", 1, identity, partial(_reinforce, grader=grader), inputs, numerics)


def evaluated(
    config: EvaluationSection, model: Step, tasks: Step, name: str, grader: task_sets.TaskGrader, numerics: Numerics
) -> Step:
    """content/: items.jsonl, summary.json, samples.jsonl as stage 6 writes them, and text.json (bits a byte).

    Domains: heldout and unseen (samples at a temperature: pass@1), heldout_greedy and unseen_greedy, format (greedy).
    """
    from noria.evals.text_guard import text_digest

    identity = EvaluatedIdentity(**config.model_dump(), graders=grader.versions, text=text_digest(TEXT_BYTES))
    inputs = {"model": model, "tasks": tasks}
    return Step(
        f"evaluate_{name}", s6.STAGE, "evaluation", 1, identity, partial(_evaluate, grader=grader), inputs, numerics
    )


def candidates(model: Step, trained: Step, before: Step, after: Step, grader: task_sets.TaskGrader) -> Step:
    """What the verdict compares, the imported model being the incumbent: content/candidates.json."""
    identity = CandidatesIdentity(metrics=_metrics(grader))
    inputs = {"model_incumbent": model, "model_grpo": trained, "before": before, "after": after}
    return Step("candidates", s9.STAGE, "candidates", 2, identity, _collect, inputs)


def rules_of(release: ReleaseSection, grader: task_sets.TaskGrader) -> s9.VerdictConfig:
    margins = {"unseen": release.unseen_margin, "format": release.format_margin, "text": release.text_margin}
    rails = tuple(
        s9.RailConfig(metric=name, margin=margins[name])  # type: ignore[arg-type]
        for name in _metrics(grader)
        if name in margins
    )
    return s9.VerdictConfig(primary_floor=release.floor, guardrails=rails)


def _metrics(grader: task_sets.TaskGrader) -> tuple[str, ...]:
    return ("correct", *(("unseen",) if grader.has_unseen else ()), "format", "text")


# -- what the steps do --


def _reinforce(context: StepContext, grader: task_sets.TaskGrader) -> Mapping[str, Any]:
    from noria.posttraining import GrpoConfig, improve
    from noria.posttraining.watch import watcher
    from noria.stages.training_progress import training_progress

    config: ReinforcedIdentity = context.config
    folder = context.inputs["model"].content
    progress = training_progress(context)  # sets the threads, which loading a model already uses
    model, tokenizer = _load(folder)
    progress = replace(progress, checkpoint_seconds=_checkpoint_seconds(model))
    reference = copy.deepcopy(model).eval()
    tasks = task_sets.read(context.inputs["tasks"].content, "train")
    held_out = _spread(task_sets.read(context.inputs["tasks"].content, "heldout"), config.probe_tasks)
    room = _room([*tasks, *held_out], tokenizer, config.max_tokens, model)

    roll, greedy = (
        _roller(model, tokenizer, room, config.max_tokens, temperature, precision=config.precision)
        for temperature in (1.0, 0.0)
    )

    def probe() -> float:
        traces = greedy(held_out, [0] * len(held_out))
        return _share_right(grader.grade(held_out, traces), grader.threshold)

    def tell(step: int, asked: Sequence[Task], traces: Sequence[Trace], scores: Sequence[Score]) -> None:
        _refuse_without_signal(step, scores)
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
        "reward_first": statistics.fmean(row["reward"] for row in history[:fifth]),
        "reward_last": statistics.fmean(row["reward"] for row in history[-fifth:]),
        "kl": history[-1].get("kl", 0.0),
    }


def _evaluate(context: StepContext, grader: task_sets.TaskGrader) -> Mapping[str, Any]:
    import torch

    from noria.evals.benchmarks import grade, run_benchmark, summarise
    from noria.evals.text_guard import bits_per_byte, guard_text
    from noria.inference import score

    config: EvaluatedIdentity = context.config
    torch.set_num_threads(context.numerics.threads if context.numerics else 1)
    model, tokenizer = _load(context.inputs["model"].content)
    folder = context.inputs["tasks"].content
    sets = {name: task_sets.read(folder, name) for name in task_sets.MEASURED}
    passes = [
        *((name, sample, config.temperature) for name in ("heldout", "unseen") for sample in range(config.samples)),
        *((name, 0, 0.0) for name in task_sets.MEASURED),
    ]
    total = sum(len(sets[name]) for name, *_ in passes)
    items: list[Item] = []
    kept: list[dict[str, Any]] = []
    for name, sample, temperature in passes:
        most = config.format_tokens if name == "format" else config.max_tokens
        tasks = [_as_asked(task, name, temperature) for task in sets[name]]
        roll = _roller(model, tokenizer, _room(tasks, tokenizer, most, model), most, temperature, config.rows)
        grading = grade if name == "format" else grader.grade
        room_for = dict.fromkeys({task.family for task in tasks}, 0 if sample else config.kept_traces)
        report = _report_from(context, len(items), total, name)
        for item, trace in run_benchmark(tasks, _answers(roll, sample), sample, config.rows, report, grading):
            if name != "format" and item.value is not None:
                item = replace(item, correct=item.value >= grader.threshold)
            items.append(item)
            if room_for[item.family]:
                room_for[item.family] -= 1
                kept.append({"item": item.as_json(), "trace": json.loads(trace.to_json())})
    windows = bits_per_byte(lambda ids: score(model, ids, rows=8), tokenizer, guard_text(TEXT_BYTES))
    summary = summarise(items)
    s6.write_lines(context.content / "items.jsonl", (s6.dumps(item.as_json()) for item in items))
    s6.write_lines(context.content / "samples.jsonl", map(s6.dumps, kept))
    s6.write_json(context.content / "summary.json", summary)
    s6.write_json(context.content / "text.json", windows)
    metrics = {f"{domain}_accuracy": row["accuracy"] for domain, row in summary["domains"].items() if row["n"]}
    return metrics | {
        "bits_per_byte": statistics.fmean(windows),
        "items": len(items),
        "failed_gradings": sum(item.correct is None for item in items),
    }


def _collect(context: StepContext) -> Mapping[str, Any]:
    rows = {}
    for name, evaluation in (("incumbent", "before"), ("grpo", "after")):
        model = context.inputs[f"model_{name}"]
        rows[name] = _candidate(context.inputs[evaluation], model, context.config.metrics)
    s6.write_json(context.content / "candidates.json", rows)
    return {"candidates": len(rows), "items": len(rows["grpo"]["scores"]["correct"])}


def _candidate(evaluation: Artifact, model: Artifact, metrics: Sequence[str]) -> dict[str, Any]:
    items = [json.loads(line) for line in (evaluation.content / "items.jsonl").read_text().splitlines()]
    metric_of = {"heldout": "correct", "unseen": "unseen", "format": "format"}
    found: dict[str, dict[str, list[float]]] = {name: {} for name in metrics}
    for item in items:
        if item["correct"] is not None and item["domain"] in metric_of:
            found[metric_of[item["domain"]]].setdefault(item["task_id"], []).append(float(item["correct"]))
    # A task's samples are not independent: the verdict counts tasks, each by its mean.
    scores: dict[str, dict[str, float | None]] = {
        name: {task: statistics.fmean(values) for task, values in tasks.items()} for name, tasks in found.items()
    }
    # Probability a byte lies in [0, 1] and higher is better, as the verdict's metrics are.
    windows = json.loads((evaluation.content / "text.json").read_text())
    scores["text"] = {f"window {place}": 2.0**-bits for place, bits in enumerate(windows)}
    slices = {item["task_id"]: item["family"] for item in items if item["domain"] == "heldout"}
    size = float((model.content / "model.safetensors").stat().st_size)
    return {"scores": scores, "slices": slices, "costs": {"weight_bytes": size}, "model": model.key}


# -- what they share --


def _load(folder: Path) -> tuple[Transformer, ChatTokenizer]:
    from noria.data.chat_tokenizer import load_chat_tokenizer
    from noria.model import load_model

    return load_model(folder), load_chat_tokenizer(folder)


def _publish(content: Path, model: Transformer, origin: Path) -> None:
    from noria.model import save_model

    save_model(content, model, origin / "tokenizer.json")
    source.copy_chat_files(origin, content)


def _room(tasks: Sequence[Task], tokenizer: ChatTokenizer, max_tokens: int, model: Transformer) -> int:
    """Tokens of context that the longest prompt and its reply need, at most the model's own."""
    longest = max((len(tokenizer.render(messages)) for messages in {task.messages for task in tasks}), default=1)
    return min(model.config.context, longest + max_tokens + 1)


def _roller(
    model: Transformer,
    tokenizer: ChatTokenizer,
    room: int,
    max_tokens: int,
    temperature: float,
    rows: int = 128,
    precision: Precision = "float32",
) -> Roll:
    """Rollouts with the weights as they are at each call: the engine notices that they have changed."""
    from noria.evals.benchmarks import seeded_single_turn
    from noria.inference import Engine, affordable_rows

    most = max(1, min(rows, affordable_rows(model.config, room)))
    engine = Engine(model, tokenizer.end, max_rows=most, context=room, precision=precision)
    return seeded_single_turn(engine, tokenizer, room, max_tokens, temperature, tokenizer.ends)


def _as_asked(task: Task, name: str, temperature: float) -> Task:
    """Greedy replies are shown apart from the samples whose mean is pass@1: under names of their own."""
    if temperature or name == "format":
        return replace(task, domain=name)
    return replace(task, domain=f"{name}_greedy", family=f"{task.family}_greedy")


def _answers(roll: Roll, sample: int) -> Callable[[Sequence[Task]], list[Trace]]:
    from noria.types import seed_of

    return lambda tasks: roll(tasks, [seed_of("evaluation", task.id, sample) for task in tasks])


def _report_from(context: StepContext, before: int, total: int, name: str) -> Callable[[int, int], None]:
    return lambda done, _: context.report(before + done, total, "tasks", name)


def _checkpoint_seconds(model: Transformer) -> float:
    """Between two checkpoints: weights and two moments in fp32, written and hashed at some 300 MB/s, shall cost a tenth
    of the time."""
    return max(0.2, 12.0 * sum(parameter.numel() for parameter in model.parameters()) / 30e6)


def _spread(tasks: Sequence[Task], count: int) -> list[Task]:
    """At most `count` of the tasks, evenly over their order (and so over their families)."""
    return list(tasks) if len(tasks) <= count else [tasks[place * len(tasks) // count] for place in range(count)]


def _share_right(scores: Sequence[Score], threshold: float) -> float:
    graded = [score.value >= threshold for score in scores if score.value is not None]
    return sum(graded) / len(graded) if graded else float("nan")


def _refuse_without_signal(step: int, scores: Sequence[Score]) -> None:
    """Raises NoSignal where most gradings fail, or where the first rewards are all equal: there is nothing to learn."""
    failed = [score for score in scores if score.value is None]
    if len(failed) > len(scores) / 2:
        raise NoSignal(f"{len(failed)} of {len(scores)} gradings of step {step} failed, e.g.: {failed[0].evidence}")
    values = {score.value for score in scores if score.value is not None}
    if step == 0 and len(values) == 1:
        raise NoSignal(
            f"all {len(scores)} replies of the first step got the reward {values.pop():g}: the tasks are too hard, too "
            "easy, or the grader does not tell replies apart; nothing was trained"
        )


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
