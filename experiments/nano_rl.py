"""What the RL experiments start from: base and cold-started model of recipes/nano.toml, its tasks, its rollouts.

Reasoning tasks without code, whose sandbox would take most of the time.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from experiments.nano import RECIPE
from noria.artifacts import Executor, Store
from noria.assembly import build
from noria.data.tokenizer import Tokenizer
from noria.evals.benchmarks import grade as exact_grade
from noria.evals.tasks import FAMILIES, generate
from noria.model import Transformer, load_model
from noria.posttraining import Grade, GrpoConfig, PpoConfig, Roll, improve, improve_with_critic
from noria.posttraining.task_set import read_tasks
from noria.recipe import load
from noria.stages.model_steps import roller
from noria.training import History, Progress
from noria.types import Task, Trace, seed_of

DOMAINS = ("maths", "logic")
MAX_TOKENS = 72
# Held-out tasks a family, sampled once each at temperature 1: what RL trains is the sampled policy.
HELDOUT, HELDOUT_SEED = 60, 7001


@dataclass(frozen=True)
class Start:
    """Folders of the artifacts: the base model, the cold-started one, the task set."""

    base: Path
    cold_start: Path
    tasks: Path

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.base / "tokenizer.json")

    @cached_property
    def training_tasks(self) -> list[Task]:
        return [task for task in read_tasks(self.tasks / "rl.jsonl") if task.domain in DOMAINS]

    @cached_property
    def heldout(self) -> list[Task]:
        families = [name for name, family in FAMILIES.items() if family.domain in DOMAINS]
        return [task for name in families for task in generate(name, HELDOUT, HELDOUT_SEED, "heldout")]

    def model(self, cold_started: bool = True) -> Transformer:
        return load_model(self.cold_start if cold_started else self.base)

    def roll(self, model: Transformer) -> Roll:
        return roller(model, self.tokenizer, MAX_TOKENS, 1.0)

    def replies(self, model: Transformer, seed: int) -> list[Trace]:
        seeds = [seed_of("held out", seed, task.id) for task in self.heldout]
        return self.roll(model.eval())(self.heldout, seeds)

    def accuracy(self, traces: Sequence[Trace]) -> float:
        """Of replies to the held-out tasks, by the exact graders. A truncated reply is wrong."""
        scores = exact_grade(self.heldout, traces)
        return sum(score.value == 1.0 for score in scores) / len(scores)

    def train(
        self,
        model: Transformer,
        config: GrpoConfig | PpoConfig,
        seed: int,
        grade: Grade = exact_grade,
        progress: Progress | None = None,
    ) -> History:
        """Train `model` in place, by GRPO or PPO as `config` says."""
        reference = copy.deepcopy(model).eval() if config.reference_kl else None
        pad, tasks, roll = self.tokenizer.pad, self.training_tasks, self.roll(model)
        if isinstance(config, PpoConfig):
            return improve_with_critic(model, tasks, roll, grade, config, pad, seed, progress, reference=reference)
        return improve(model, tasks, roll, grade, config, pad, seed, progress, reference=reference)


def start(store: str = "store", threads: int = 2) -> Start:
    """The artifacts of the nano recipe, from `store` or made into it."""
    torch.set_num_threads(threads)
    opened = Store(Path(store))
    steps = {step.name: step for step in build(load(RECIPE, []), 1, opened)}
    upto = ("registry", "raw_data", "corpus", "tokenizer", "shards", "ladder", "plan", "base_model")
    wanted = [steps[name] for name in (*upto, "posttraining_tasks", "cold_start")]
    made = Executor(opened, "experiments").run(wanted)
    folders = (made[name].content for name in ("base_model", "cold_start", "posttraining_tasks"))
    return Start(*folders)
