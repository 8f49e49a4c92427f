"""A small chain of steps with the shape of a recipe: words -> counts -> model, each deterministic."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from noria.artifacts import Numerics, Step, StepContext, Store


class WordsConfig(BaseModel):
    words: int = 20
    seed: int = 0


class ModelConfig(BaseModel):
    learning_rate: float = 0.02
    steps: int = 5


def make_words(context: StepContext) -> dict[str, Any]:
    words = [f"w{(context.config.seed + index * 7) % 13}" for index in range(context.config.words)]
    (context.content / "part").mkdir()
    (context.content / "part" / "words.txt").write_text("\n".join(words))
    (context.observed / "clock.txt").write_text("now")
    return {"words": len(words)}


def make_counts(context: StepContext) -> dict[str, Any]:
    words = (context.inputs["words"].content / "part" / "words.txt").read_text().split()
    counts = {word: words.count(word) for word in sorted(set(words))}
    (context.content / "counts.json").write_text(json.dumps(counts))
    return {"distinct": len(counts)}


def make_model(context: StepContext) -> dict[str, Any]:
    """Trains step by step with a checkpoint after each; a file `stop` in progress/ says how often it is to fail."""
    saved = context.progress / "state.json"
    state = json.loads(saved.read_text()) if saved.exists() else {"step": 0, "weight": 0.0}
    total = sum(json.loads((context.inputs["counts"].content / "counts.json").read_text()).values())
    for step in range(state["step"], context.config.steps):
        state = {"step": step + 1, "weight": state["weight"] + context.config.learning_rate * total}
        saved.write_text(json.dumps(state))
        context.report(step + 1, context.config.steps, "steps")
        context.log(step, loss=1.0 / (step + 1))
    (context.content / "model.json").write_text(json.dumps(state))
    return {"weight": state["weight"]}


@pytest.fixture(autouse=True)
def no_disk_flushes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test cuts the power, and flushing to disk takes most of the time here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def chain() -> Callable[..., list[Step]]:
    """chain(seed=1, learning_rate=0.1, run=...) -> the three steps."""

    def build(seed: int = 0, learning_rate: float = 0.02, run: Any = make_model, threads: int = 1) -> list[Step]:
        words = Step("words", "s1_raw_data", "raw_data", 1, WordsConfig(seed=seed), make_words)
        counts = Step("counts", "s2_data", "corpus", 1, WordsConfig(), make_counts, {"words": words})
        config = ModelConfig(learning_rate=learning_rate)
        numerics = Numerics(threads=threads)
        model = Step("model", "s4_pretraining", "model", 1, config, run, {"counts": counts}, numerics)
        return [words, counts, model]

    return build
