"""Our side of `benchmarks/grpo_step.py`: the same steps through `posttraining.improve` and the engine."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.grpo_step_peer import clock, reward
from noria.data.chat_tokenizer import load_chat_tokenizer
from noria.evals.benchmarks import seeded_single_turn
from noria.inference import Engine
from noria.model import load_model
from noria.posttraining import GrpoConfig, improve
from noria.training import Progress
from noria.types import GraderRef, Message, Score, Task, Trace

NEVER = -1  # no token has this id: with it as the end, every reply has the same length


def main() -> None:
    task: dict[str, Any] = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    folder = Path(task["folder"])
    model, tokenizer = load_model(folder), load_chat_tokenizer(folder)
    end = NEVER if task["min_tokens"] == task["max_tokens"] else tokenizer.end
    engine = Engine(model, end, max_rows=task["prompts"] * task["group"], context=256, precision="bfloat16")
    grader = GraderRef("share_of_e", "1")
    tasks = [
        Task(str(i), (Message("user", text),), grader, "", "letters", "text") for i, text in enumerate(task["texts"])
    ]
    roll = seeded_single_turn(engine, tokenizer, engine.context, task["max_tokens"], 1.0)

    def grade(tasks: Sequence[Task], traces: Sequence[Trace]) -> list[Score]:
        return [Score("graded", grader, reward(trace.reply)) for trace in traces]

    tick = clock()
    started = tick()

    def on_step(step: int, total: int, metrics: Mapping[str, float]) -> None:
        nonlocal started
        now = tick()
        print(json.dumps({"seconds": now - started, "reward": metrics["reward"]}), flush=True)
        started = now

    config = GrpoConfig(
        steps=task["steps"],
        prompts=task["prompts"],
        group=task["group"],
        learning_rate=task["learning_rate"],
        schedule="constant",
        muon=False,
        precision="bfloat16",
        micro_batch_rows=task["rows"],
    )
    print(json.dumps({"name": f"noria {importlib.metadata.version('noria')}"}), flush=True)
    started = tick()
    improve(model, tasks, roll, grade, config, tokenizer.pad, task["seed"], Progress(on_step=on_step))


if __name__ == "__main__":
    main()
