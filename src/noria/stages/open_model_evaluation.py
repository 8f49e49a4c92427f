"""How an open model is measured before and after training, and what of it the verdict compares."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from noria.artifacts import Artifact, Numerics, Step, StepContext
from noria.stages import open_model_tasks as task_sets
from noria.stages import s6_evaluation as s6
from noria.stages import s9_deployment as s9
from noria.stages.open_model_replies import load, roller, room_of
from noria.stages.open_model_signal import FirstStep, try_rewards

if TYPE_CHECKING:
    from noria.evals.benchmarks import Item
    from noria.posttraining import Roll
    from noria.types import Task, Trace

TEXT_BYTES = 24_000


class EvaluationSection(BaseModel):
    """[evaluation] of a recipe for an open model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_tokens: int = Field(default=32, ge=1, description="sampled tokens a reply to a task")
    format_tokens: int = Field(default=48, ge=8, description="sampled tokens a reply to an instruction about form")
    temperature: float = Field(default=1.0, gt=0.0, le=2.0, description="of the samples; greedy is measured besides")
    samples: int = Field(default=4, ge=1, le=64, description="samples a task; pass@1 is their mean")
    rows: int = Field(default=64, ge=1, le=1024, description="replies decoded together")
    kept_traces: int = Field(default=8, ge=0, description="traces kept whole, a family, to browse")


class EvaluatedIdentity(EvaluationSection):
    graders: dict[str, str]
    text: str = Field(description="digest of the guard's text")


class CandidatesIdentity(BaseModel):
    metrics: tuple[str, ...]


def evaluated(
    config: EvaluationSection,
    model: Step,
    tasks: Step,
    name: str,
    grader: task_sets.TaskGrader,
    numerics: Numerics,
    first: FirstStep | None = None,
) -> Step:
    """content/: items.jsonl, summary.json, samples.jsonl as stage 6 writes them, and text.json (bits a byte).

    With `first` it raises NoSignal, before it measures anything, where that step's rewards would be all equal.

    Domains: heldout and unseen (samples at a temperature: pass@1), heldout_greedy and unseen_greedy, format (greedy).
    """
    from noria.evals.text_guard import text_digest

    identity = EvaluatedIdentity(**config.model_dump(), graders=grader.versions, text=text_digest(TEXT_BYTES))
    inputs = {"model": model, "tasks": tasks}
    run = partial(_evaluate, grader=grader, first=first)
    return Step(f"evaluate_{name}", s6.STAGE, "evaluation", 1, identity, run, inputs, numerics)


def candidates(
    model: Step, trained: Step, before: Step, after: Step, tasks: Step, grader: task_sets.TaskGrader
) -> Step:
    """What the verdict compares, the imported model being the incumbent: content/candidates.json."""
    identity = CandidatesIdentity(metrics=metrics_of(grader))
    inputs = {"model_incumbent": model, "model_grpo": trained, "before": before, "after": after, "tasks": tasks}
    return Step("candidates", s9.STAGE, "candidates", 4, identity, _collect, inputs)


def metrics_of(grader: task_sets.TaskGrader) -> tuple[str, ...]:
    """What the verdict compares; the first decides, the others guard."""
    return ("correct", *(("unseen",) if grader.has_unseen else ()), "format", "text")


# -- what the steps do --


def _evaluate(context: StepContext, grader: task_sets.TaskGrader, first: FirstStep | None) -> Mapping[str, Any]:
    import torch

    from noria.evals.benchmarks import grade, run_benchmark, summarise
    from noria.evals.text_guard import bits_per_byte, guard_text
    from noria.inference import score

    config: EvaluatedIdentity = context.config
    torch.set_num_threads(context.numerics.threads if context.numerics else 1)
    model, tokenizer = load(context.inputs["model"].content)
    folder = context.inputs["tasks"].content
    if first:
        try_rewards(first, model, tokenizer, task_sets.read(folder, "train"), grader.grade, context.report)
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
        roll = roller(model, tokenizer, room_of(tasks, tokenizer, most, model), most, temperature, config.rows)
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
    gold = _gold(task_sets.read(context.inputs["tasks"].content, "heldout"))
    for name, evaluation in (("incumbent", "before"), ("grpo", "after")):
        model = context.inputs[f"model_{name}"]
        rows[name] = _candidate(context.inputs[evaluation], model, context.config.metrics) | {"gold": gold}
    s6.write_json(context.content / "candidates.json", rows)
    return {"candidates": len(rows), "items": len(rows["grpo"]["scores"]["correct"])}


def _gold(tasks: Sequence[Task]) -> dict[str, str]:
    """Of the tasks that have an answer."""
    return {task.id: task.answer for task in tasks if task.answer}


def _candidate(evaluation: Artifact, model: Artifact, metrics: Sequence[str]) -> dict[str, Any]:
    items = [json.loads(line) for line in (evaluation.content / "items.jsonl").read_text().splitlines()]
    metric_of = {"heldout": "correct", "unseen": "unseen", "format": "format"}
    found: dict[str, dict[str, list[float]]] = {name: {} for name in metrics}
    replies: dict[str, list[tuple[str, bool]]] = {}
    for item in items:
        if item["correct"] is not None and item["domain"] in metric_of:
            found[metric_of[item["domain"]]].setdefault(item["task_id"], []).append(float(item["correct"]))
            if item["domain"] == "heldout":
                replies.setdefault(item["task_id"], []).append((item["answer"], item["correct"]))
    # A task's samples are not independent: the verdict counts tasks, each by its mean.
    scores: dict[str, dict[str, float | None]] = {
        name: {task: statistics.fmean(values) for task, values in tasks.items()} for name, tasks in found.items()
    }
    # Probability a byte lies in [0, 1] and higher is better, as the verdict's metrics are.
    windows = json.loads((evaluation.content / "text.json").read_text())
    scores["text"] = {f"window {place}": 2.0**-bits for place, bits in enumerate(windows)}
    slices = {item["task_id"]: item["family"] for item in items if item["domain"] == "heldout"}
    size = float((model.content / "model.safetensors").stat().st_size)
    costs = {"weight_bytes": size}
    return {"scores": scores, "slices": slices, "replies": replies, "costs": costs, "model": model.key}


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
