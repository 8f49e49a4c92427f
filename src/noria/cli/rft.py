"""Reinforcement fine-tuning from one's own tasks and grader: noria rft."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noria.cli.app import NOT_RELEASED, OK, JsonOption, app, open_store
from noria.cli.models import Training, TrainingOption, Weights, WeightsOption
from noria.studio.output import console, notices, print_json

if TYPE_CHECKING:
    from noria.artifacts import Artifact, Step, Store


@app.command(
    epilog="Example: noria rft --model smol --tasks tasks.jsonl --grader grader.json --out better. Exit codes: 0 "
    "better, and nothing lost that is guarded; 3 trained, but not shown to be better; 2 bad input; 1 failed."
)
def rft(
    model: Annotated[Path, typer.Option(exists=True, help="A folder of transformers or noria, or a .gguf file.")],
    tasks: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Tasks in JSON Lines.")],
    grader: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="A grader in JSON.")],
    out: Annotated[Path, typer.Option(file_okay=False, help="Gets model/, report.html and results.json.")],
    heldout: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Held-out tasks; a fifth of TASKS, by id, if not.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 30,
    prompts: Annotated[int, typer.Option(min=1, help="Tasks a step.")] = 16,
    group: Annotated[int, typer.Option(min=2, help="Samples a task.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Sampled tokens a reply.")] = 64,
    learning_rate: Annotated[float, typer.Option(min=1e-9, max=1.0)] = 1e-5,
    precision: TrainingOption = Training.auto,
    weight_precision: WeightsOption = Weights.float32,
    compile_: Annotated[
        bool,
        typer.Option("--compile", help="Compile the blocks: less memory and time a step; half a minute to two before."),
    ] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; part of what a result is.")] = 1,
    store: Annotated[
        Path | None,
        typer.Option("--store", envvar="NORIA_STORE", help="Folder of the artifacts; OUT/store if not given."),
    ] = None,
    json_: JsonOption = False,
) -> int:
    """Train MODEL by GRPO on TASKS as GRADER rewards them, and prove on held-out tasks whether it became better.

    Killed or stopped, the same command goes on from where it was.
    """
    from noria.artifacts import Executor
    from noria.stages.open_model import GrpoSection
    from noria.stages.open_model_evaluation import EvaluationSection
    from noria.stages.precision import precision_for
    from noria.studio.live import LiveRun
    from noria.studio.training_view import training_view

    if weight_precision is Weights.bfloat16 and precision_for(precision.value) == "float32":
        raise typer.BadParameter("--weight-precision bfloat16 needs --precision bfloat16: give both")
    if compile_:
        from noria.training.compute import check_compiler

        try:
            check_compiler()
        except ValueError as error:
            raise typer.BadParameter(f"--compile: {error}") from error
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    opened = open_store(store or out / "store")
    training = GrpoSection(
        steps=steps,
        prompts=prompts,
        group=group,
        max_tokens=max_tokens,
        learning_rate=learning_rate,
        precision=precision.value,
        weight_precision=weight_precision.value,
        compile=compile_,
    )
    measuring = EvaluationSection(max_tokens=max_tokens)
    screen = notices() if json_ else console()
    screen.print(f"reading {tasks} and trying {grader} on its answers", markup=False, soft_wrap=True)
    plan = _steps(model, tasks, heldout, grader, training, measuring, seed, threads)
    live = LiveRun(plan, screen, lambda: training_view(opened, {step.name: step.key for step in plan}["grpo"]))
    with live:
        made = Executor(opened, "rft", on_progress=live.observe).run(plan, {"tasks": str(tasks), "grader": str(grader)})
    results = _deliver(opened, made, out)
    if json_:
        print_json(results)
    else:
        screen.print(_said(results, out), highlight=False, soft_wrap=True)
    return OK if results["decision"] == "release" else NOT_RELEASED


def _steps(
    model: Path, tasks: Path, heldout: Path | None, grader: Path, training: Any, measuring: Any, seed: int, threads: int
) -> list[Step]:
    """The same steps as a recipe with [open_model] has, from arguments. Reads and checks everything that was given."""
    from noria.grading.grader_language import read
    from noria.grading.language_grader import LanguageGrader
    from noria.stages import open_model, open_model_source, open_model_tasks

    judge = LanguageGrader(read(grader))
    imported = open_model_source.imported(open_model_source.Config(folder=str(model)))
    task_set, grading = open_model_tasks.from_file(tasks, heldout, judge, imported, training.max_tokens, seed)
    sections = (training, measuring, open_model.ReleaseSection())
    return open_model.journey(imported, task_set, *sections, grading, seed, threads)


def _deliver(store: Store, made: dict[str, Artifact], out: Path) -> dict[str, Any]:
    """Write OUT/model, OUT/report.html and OUT/results.json; the results come back."""
    from noria.studio.report import write

    target, part = out / "model", out / "model.part"
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(made["export"].content, part)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    write(store, "rft", out / "report.html")
    comparison = json.loads((made["compare"].content / "comparison.json").read_text())
    results = {
        "decision": made["verdict"].metrics["decision"],
        "reasons": json.loads((made["verdict"].content / "verdict.json").read_text())["reasons"],
        "comparison": comparison,
        "before": dict(made["evaluate_before"].metrics),
        "after": dict(made["evaluate_after"].metrics),
        "training": dict(made["grpo"].metrics),
        "model": dict(made["export"].metrics) | {"folder": str(target)},
    }
    (out / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return results


def _said(results: dict[str, Any], out: Path) -> str:
    lines = [
        f"{row['domain']}: {row['from_accuracy']:.3f} -> {row['to_accuracy']:.3f}, difference "
        f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}], n = {row['n']}"
        for row in results["comparison"]
        if row["n"] > 1
    ]
    is_better = results["decision"] == "release"
    verdict = "the model is better" if is_better else f"the model is not shown to be better ({results['decision']})"
    said = [f"\nVerdict: {verdict}", *lines, *(f"- {reason}" for reason in results["reasons"][1:])]
    return "\n".join([*said, f"{out}/model, {out}/report.html and {out}/results.json written"])
