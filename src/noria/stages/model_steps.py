"""What every step that turns a model into another has in common: load, train with progress, publish."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from noria.artifacts import StepContext
from noria.data.tokenizer import Tokenizer
from noria.harness import Budget, Sampling, load_program, rollout
from noria.inference import Engine
from noria.model import Transformer, load_model, save_model
from noria.posttraining import Roll
from noria.stages.training_progress import training_progress
from noria.training import History, Progress
from noria.types import Task, Trace


class TrainedModel:
    """The model of input `role`, to be trained in place and published into the step's content."""

    def __init__(self, context: StepContext, role: str = "model") -> None:
        self._context, self._folder = context, context.inputs[role].content
        torch.set_num_threads(context.numerics.threads if context.numerics else 1)
        self.model: Transformer = load_model(self._folder)
        self.tokenizer = Tokenizer.load(self._folder / "tokenizer.json")

    @property
    def progress(self) -> Progress:
        return training_progress(self._context)

    def copy(self) -> Transformer:
        return copy.deepcopy(self.model).eval()

    def publish(self, history: History, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write the model folder and history.json (a row a step); the metrics come back for the manifest."""
        save_model(self._context.content, self.model, self._folder / "tokenizer.json")
        (self._context.content / "history.json").write_text(json.dumps(history) + "\n")
        return {"steps": len(history), **metrics}


def roller(model: Transformer, tokenizer: Tokenizer, max_tokens: int, temperature: float) -> Roll:
    """Single-turn rollouts from `model` as it is at each call: the engine shares its weights."""
    engine = Engine(model, tokenizer.end)
    program = load_program("plain")
    budget = Budget(tokens_per_turn=max_tokens, context=model.config.context)

    def roll(tasks: Sequence[Task], seeds: Sequence[int]) -> list[Trace]:
        return rollout(
            tasks, seeds, engine, tokenizer, program, budget=budget, sampling=Sampling(temperature=temperature)
        )

    return roll
