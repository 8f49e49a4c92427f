"""Stage 6, evaluation, grader, reward: held-out tasks, the graders' error rates, models measured and compared.

`registry` and `graders` come first in a run although the stage has number 6: stage 2 decontaminates against the one,
stage 5 is rewarded by the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from noria.artifacts import Artifact, Numerics, Step, StepContext
from noria.grading import WEAK_TWINS, grader_versions
from noria.types import Task, task_from_json, task_to_json

STAGE = "s6_evaluation"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Config(_Section):
    """[evaluation] of a recipe."""

    items_per_domain: int = Field(
        300, ge=8, le=100_000, description="held-out tasks a domain, split among its families"
    )
    task_seed: int = Field(2000, ge=0, description="seed of the held-out tasks")
    calibration_per_side: int = Field(
        240,
        ge=8,
        le=10_000,
        description="known-good and known-bad answers each, a domain, that graders are measured on",
    )
    max_tokens: int = Field(128, ge=1, description="sampled tokens a reply, thinking included")
    temperature: float = Field(0.0, ge=0.0, le=2.0, description="0 is greedy")
    samples: int = Field(1, ge=1, le=64, description="replies a task; more than 1 needs temperature above 0")
    sample_seed: int = Field(0, ge=0, description="seed of the sampling, where temperature is above 0")
    batch_rows: int = Field(256, ge=1, le=4096, description="replies decoded together")
    kept_traces: int = Field(6, ge=0, le=1000, description="traces kept whole, a family, to browse")

    def model_post_init(self, _: Any) -> None:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples > 1 at temperature 0 gives equal replies; set temperature above 0 or samples = 1")


class RegistryConfig(_Section):
    items_per_domain: int
    task_seed: int


class GradersConfig(_Section):
    calibration_per_side: int
    versions: dict[str, str]


class EvaluateConfig(_Section):
    max_tokens: int
    temperature: float
    samples: int
    sample_seed: int
    batch_rows: int
    kept_traces: int
    graders: dict[str, str] = Field(description="version of each grader: another grader makes another evaluation")


class CompareConfig(_Section):
    order: tuple[str, ...] = Field(description="names of the models, each compared with the one before it")


def registry(config: Config) -> Step:
    """Held-out tasks of all families: content/tasks.jsonl, content/registry.json (counts and graders)."""
    chosen = RegistryConfig(items_per_domain=config.items_per_domain, task_seed=config.task_seed)
    return Step("registry", STAGE, "registry", 1, chosen, _write_registry)


def graders(config: Config) -> Step:
    """Every grader on answers known to be good or bad: content/graders.json, with Wilson intervals and the mistakes."""
    chosen = GradersConfig(calibration_per_side=config.calibration_per_side, versions=grader_versions())
    return Step("graders", STAGE, "graders", 1, chosen, _measure_graders)


def evaluate(
    config: Config, model: Step | Artifact, registry: Step | Artifact, name: str, numerics: Numerics | None = None
) -> Step:
    """`model` on the registry: content/items.jsonl, summary.json (by domain and family, intervals), samples.jsonl."""
    chosen = EvaluateConfig(
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        samples=config.samples,
        sample_seed=config.sample_seed,
        batch_rows=config.batch_rows,
        kept_traces=config.kept_traces,
        graders=grader_versions(),
    )
    inputs = {"model": model, "registry": registry}
    return Step(f"evaluate_{name}", STAGE, "evaluation", 1, chosen, _evaluate, inputs, numerics or Numerics())


def compare(config: Config, evaluations: Mapping[str, Step | Artifact], name: str = "compare") -> Step:
    """Each model against the one before it, item by item: content/comparison.json.

    Paired differences in accuracy with t intervals, exact McNemar p-values, and these adjusted (Holm) over all rows.
    """
    chosen = CompareConfig(order=tuple(evaluations))
    return Step(name, STAGE, "comparison", 2, chosen, _compare, dict(evaluations))


def read_registry(folder: Path) -> list[Task]:
    """The tasks of a registry artifact's content folder."""
    return [task_from_json(line) for line in (folder / "tasks.jsonl").read_text().splitlines()]


def _write_registry(context: StepContext) -> Mapping[str, Any]:
    from noria.evals.registry import domains, held_out_tasks

    config: RegistryConfig = context.config
    total = config.items_per_domain * len(domains())
    tasks = held_out_tasks(
        config.items_per_domain, config.task_seed, lambda done, family: context.report(done, total, "tasks", family)
    )
    write_lines(context.content / "tasks.jsonl", map(task_to_json, tasks))
    counts: dict[str, dict[str, int]] = {"domains": {}, "families": {}}
    for task in tasks:
        for group, member in (("domains", task.domain), ("families", task.family)):
            counts[group][member] = counts[group].get(member, 0) + 1
    write_json(context.content / "registry.json", counts)
    return {"tasks": len(tasks), **{f"{domain}_tasks": count for domain, count in counts["domains"].items()}}


def _measure_graders(context: StepContext) -> Mapping[str, Any]:
    from noria.evals.calibration import CASES, calibrate, cases_for
    from noria.grading import grader_for

    config: GradersConfig = context.config
    rows: dict[str, Any] = {}
    judged = [(name, domain) for domain in CASES for name in (domain, WEAK_TWINS.get(domain)) if name]
    for done, (name, domain) in enumerate(judged):
        context.report(done, len(judged), "graders", name)
        row = calibrate(grader_for(name), cases_for(domain, config.calibration_per_side)).as_json()
        rows[name] = row | {"domain": domain, "weak": name != domain}
    write_json(context.content / "graders.json", rows)
    return {
        f"{name}_{rate}_positive": row[f"{rate}_positive"]["estimate"]
        for name, row in rows.items()
        for rate in ("true", "false")
    }


def _evaluate(context: StepContext) -> Mapping[str, Any]:
    import torch

    from noria.data.tokenizer import Tokenizer
    from noria.evals.benchmarks import run_benchmark, single_turn, summarise
    from noria.inference import Engine
    from noria.model import load_model

    config: EvaluateConfig = context.config
    torch.set_num_threads(context.numerics.threads if context.numerics else 1)
    folder = context.inputs["model"].content
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    engine = Engine(load_model(folder), tokenizer.end, config.batch_rows)
    tasks = read_registry(context.inputs["registry"].content)
    items, kept = [], []
    room = dict.fromkeys({task.family for task in tasks}, config.kept_traces)
    total = len(tasks) * config.samples
    for sample in range(config.samples):
        answer = single_turn(
            engine, tokenizer, engine.context, config.max_tokens, config.temperature, config.sample_seed, sample
        )
        offset = sample * len(tasks)
        report = _reporter(context, offset, total)
        for item, trace in run_benchmark(tasks, answer, sample, config.batch_rows, report):
            items.append(item)
            if room[item.family]:
                room[item.family] -= 1
                kept.append({"item": item.as_json(), "trace": json.loads(trace.to_json())})
    summary = summarise(items)
    write_lines(context.content / "items.jsonl", (dumps(item.as_json()) for item in items))
    write_lines(context.content / "samples.jsonl", map(dumps, kept))
    write_json(context.content / "summary.json", summary)
    metrics = {f"{domain}_accuracy": row["accuracy"] for domain, row in summary["domains"].items() if row["n"]}
    metrics |= {axis: rate["estimate"] for axis, rate in summary["refusal"].items()}
    return metrics | {"items": len(items), "failed_gradings": sum(item.correct is None for item in items)}


def _compare(context: StepContext) -> Mapping[str, Any]:
    from noria.evals.compare import compare_items

    order = context.config.order
    results = {name: _read_items(context.inputs[name].content / "items.jsonl") for name in order}
    rows = compare_items(results, order)
    write_json(context.content / "comparison.json", rows)
    return {"comparisons": len(rows), "significant": sum(row["p_holm"] < 0.05 for row in rows)}


def _reporter(context: StepContext, offset: int, total: int) -> Any:
    return lambda done, _: context.report(offset + done, total, "tasks")


def _read_items(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(line + "\n" for line in lines))


def write_json(path: Path, value: Mapping[str, Any] | Sequence[Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
