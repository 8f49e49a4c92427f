"""`noria eval`: one model folder on a user's tasks or on the built-in families, outside of any run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Asked:
    """What to ask and how to sample. Without `tasks`, `per_domain` held-out tasks of each domain."""

    tasks: Path | None
    per_domain: int
    max_tokens: int
    temperature: float
    seed: int


def evaluate_folder(folder: Path, asked: Asked, out: Path | None = None) -> dict[str, Any]:
    """The summary of stage 6 for one model; items go to `out` as JSON Lines. Tasks are read first."""
    from noria.evals.benchmarks import run_benchmark, single_turn, summarise
    from noria.evals.registry import held_out_tasks
    from noria.evals.task_file import read_tasks

    tasks = read_tasks(asked.tasks) if asked.tasks else held_out_tasks(asked.per_domain, asked.seed)

    from noria.data.tokenizer import Tokenizer
    from noria.inference import Engine
    from noria.model import load_model

    model = load_model(folder)
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    engine = Engine(model, tokenizer.end, max_rows=64)
    answer = single_turn(engine, tokenizer, engine.context, asked.max_tokens, asked.temperature, asked.seed)
    items = [item for item, _ in run_benchmark(tasks, answer, batch=64)]
    if out is not None:
        lines = (json.dumps(item.as_json(), ensure_ascii=False) + "\n" for item in items)
        out.write_text("".join(lines), encoding="utf-8")
    return {"model": str(folder), "items": len(items), **summarise(items)}
