"""Our side of `benchmarks/grpo_step.py`: the same steps through `posttraining.improve` and the engine."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.grpo_step_peer import clock, peak_bytes, reward
from noria.data.chat_tokenizer import load_chat_tokenizer
from noria.evals.benchmarks import seeded_single_turn
from noria.inference import Engine
from noria.model import load_model
from noria.posttraining import GrpoConfig, improve
from noria.training import Progress
from noria.types import GraderRef, Message, Score, Task, Trace, seed_of

NEVER = -1  # no token has this id: with it as the end, every reply has the same length


def main() -> None:
    task: dict[str, Any] = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    folder = Path(task["folder"])
    model, tokenizer = load_model(folder), load_chat_tokenizer(folder)
    precision = "float32" if task["variant"] == "float32" else "bfloat16"
    end = NEVER if task["min_tokens"] == task["max_tokens"] else tokenizer.end
    engine = Engine(model, end, max_rows=task["prompts"] * task["group"], context=256, precision=precision)
    grader = GraderRef("share_of_e", "1")
    tasks = [
        Task(str(i), (Message("user", text),), grader, "", "letters", "text") for i, text in enumerate(task["texts"])
    ]
    roll = seeded_single_turn(engine, tokenizer, engine.context, task["max_tokens"], 1.0)

    def grade(tasks: Sequence[Task], traces: Sequence[Trace]) -> list[Score]:
        return [Score("graded", grader, reward(trace.reply)) for trace in traces]

    tick = clock()
    started = tick()
    sampling = 0.0  # seconds of this step's rollouts
    phase, kept = task.get("phase", "whole"), []

    def timed_roll(tasks: Sequence[Task], seeds: Sequence[int]) -> list[Trace]:
        """`roll` by the clock; for training alone the first rollouts are used again in every step."""
        nonlocal sampling
        before = tick()
        traces = kept[0] if phase == "training" and kept else roll(tasks, seeds)
        kept[:] = [traces]
        sampling += tick() - before
        return traces

    def on_step(step: int, total: int, metrics: Mapping[str, float]) -> None:
        nonlocal started, sampling
        now = tick()
        row = {"seconds": now - started, "rollout_seconds": sampling, "reward": metrics["reward"]}
        print(json.dumps({**row, "peak_bytes": peak_bytes()}), flush=True)
        started, sampling = now, 0.0

    config = GrpoConfig(
        steps=task["steps"],
        prompts=task["prompts"],
        group=task["group"],
        learning_rate=task["learning_rate"],
        schedule="constant",
        muon=False,
        precision=precision,
        weight_precision="bfloat16" if task["variant"] == "bf16 weights" else "float32",
        compile=task["compile"],
        micro_batch_rows=task["rows"],
    )
    task_seed = task["seed"]
    print(json.dumps({"name": f"noria {importlib.metadata.version('noria')}"}), flush=True)
    started = tick()
    if phase == "rollout":
        rows = [task for task in tasks for _ in range(config.group)]
        for step in range(config.steps):
            timed_roll(rows, [seed_of(task_seed, step, row) for row in range(len(rows))])
            on_step(step, config.steps, {"reward": 0.0})
        return
    improve(model, tasks, timed_roll, grade, config, tokenizer.pad, task_seed, Progress(on_step=on_step))


if __name__ == "__main__":
    main()
