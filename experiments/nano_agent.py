"""What the agent experiments start from: the cold-started agent of recipes/nano.toml, its environment, its tools."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from experiments.nano import RECIPE
from noria.artifacts import Executor, Store
from noria.assembly import build
from noria.data.tokenizer import Tokenizer
from noria.harness import FILE_TOOLS, Budget, Program, Sampling, Toolbox, load_program, rollout
from noria.harness.environments import lookup
from noria.harness.tools import SandboxFailed, ToolCall, ToolResult, Tools
from noria.inference import Engine
from noria.model import Transformer, load_model
from noria.posttraining import Grade, GrpoConfig, improve
from noria.recipe import load
from noria.sandbox import Sandbox
from noria.training import History
from noria.types import Task, Trace, seed_of

TURNS, TOKENS_PER_TURN = 5, 12  # as in stage 7
TRAIN_TASKS, TRAIN_SEED, HELDOUT_SEED = 600, 8001, 8002
UNREACHABLE = "error: the tool could not be reached"


@dataclass(frozen=True)
class Agent:
    """`folder` is the cold-started model. `heldout` tasks of unseen chains judge it."""

    folder: Path
    box: Sandbox
    heldout_tasks: int = 200

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder / "tokenizer.json")

    @cached_property
    def training_tasks(self) -> list[Task]:
        return lookup.generate(TRAIN_TASKS, TRAIN_SEED, "train", lookup.lookup_grader().ref)

    @cached_property
    def heldout(self) -> list[Task]:
        return lookup.generate(self.heldout_tasks, HELDOUT_SEED, "heldout", lookup.lookup_grader().ref)

    @cached_property
    def program(self) -> Program:
        return load_program("files")

    @cached_property
    def tools(self) -> Tools:
        return Toolbox(self.box, FILE_TOOLS)

    def model(self) -> Transformer:
        return load_model(self.folder)

    def roll(
        self,
        model: Transformer,
        tasks: Sequence[Task],
        seeds: Sequence[int],
        *,
        temperature: float = 1.0,
        tools: Tools | None = None,
        program: Program | None = None,
        turns: int = TURNS,
    ) -> list[Trace]:
        return rollout(
            tasks,
            seeds,
            Engine(model.eval(), self.tokenizer.end),
            self.tokenizer,
            program or self.program,
            budget=Budget(turns=turns, tokens_per_turn=TOKENS_PER_TURN, context=model.config.context),
            tools=tools or self.tools,
            sampling=Sampling(temperature),
        )

    def attempts(self, model: Transformer, seed: int, **options: Any) -> list[Trace]:
        """The held-out tasks, sampled once each at temperature 1 unless told otherwise."""
        seeds = [seed_of("held out", seed, task.id) for task in self.heldout]
        return self.roll(model, self.heldout, seeds, **options)

    def success(self, traces: Sequence[Trace]) -> float:
        """Share of the held-out tasks that are solved. A trace that ended in any other way than an answer is not."""
        scores = lookup.lookup_grader().grade(self.heldout, traces)
        return sum(score.components.get("outcome", 0.0) for score in scores) / len(scores)

    def train(
        self, model: Transformer, config: GrpoConfig, seed: int, grade: Grade | None = None, tools: Tools | None = None
    ) -> History:
        """Train `model` in place on rollouts with `tools`."""
        return improve(
            model,
            self.training_tasks,
            lambda tasks, seeds: self.roll(model, tasks, seeds, tools=tools),
            grade or lookup.lookup_grader().grade,
            config,
            self.tokenizer.pad,
            seed,
        )


class FlakyTools:
    """`tools`, whose calls fail with probability `share` instead of being run. Its own random numbers: the same calls
    fail in every run with `seed`."""

    def __init__(self, tools: Tools, share: float, seed: int) -> None:
        self._tools, self._share = tools, share
        self._random = random.Random(seed_of("flaky", seed))
        self.described = tools.described

    def bind(self, tool: str, argument: str | Mapping[str, Any]) -> Mapping[str, Any]:
        return self._tools.bind(tool, argument)

    def run(self, calls: Sequence[ToolCall]) -> list[ToolResult | SandboxFailed]:
        failed = [self._random.random() < self._share for _ in calls]
        results = iter(self._tools.run([call for call, fails in zip(calls, failed, strict=True) if not fails]))
        return [
            ToolResult(UNREACHABLE, call.files, call.notes, deterministic=False)
            if fails
            else _not_deterministic(next(results))
            for call, fails in zip(calls, failed, strict=True)
        ]


def _not_deterministic(result: ToolResult | SandboxFailed) -> ToolResult | SandboxFailed:
    return result if isinstance(result, SandboxFailed) else replace(result, deterministic=False)


def start(box: Sandbox, store: str = "store", threads: int = 2) -> Agent:
    """The cold-started agent of the nano recipe, from `store` or made into it."""
    torch.set_num_threads(threads)
    opened = Store(Path(store))
    steps = build(load(RECIPE, []), 1, opened)
    names = [step.name for step in steps]
    made = Executor(opened, "experiments").run(steps[: names.index("agent_cold_start") + 1])
    return Agent(made["agent_cold_start"].content, box)
