"""What every importer gives: tasks, how they are graded and with which tools, and what was refused, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from noria.grading import Grader
from noria.harness.environments.environment import Environment, TasksExhausted, belongs, follow
from noria.harness.rollout import Budget
from noria.harness.scripted import Policy
from noria.harness.tools import AnyTool
from noria.types import Task, seed_of


class ImportRefused(ValueError):
    """Nothing of the source can be imported; the message says why, and what to install where that helps."""


@dataclass(frozen=True)
class Imported:
    """`gold(task)` is a policy that solves the task, None where the source has no solution for it. `refused`: name ->
    why a task can't run here."""

    name: str
    tasks: tuple[Task, ...]
    grader: Grader
    tools: tuple[AnyTool, ...] = ()
    gold: Callable[[Task], Policy | None] = lambda task: None
    refused: Mapping[str, str] = field(default_factory=dict)

    def environment(self, budget: Budget) -> Environment:
        """As an environment of ours, with a tenth-by-tenth split by task id; its one cheat is to say that it is done.

        Write better cheats: an imported grader is as easy to fool as it was where it came from. Tasks without a
        solution are left out, since the gates need one.
        """
        solved = tuple(task for task in self.tasks if self.gold(task) is not None)

        def generate(count: int, seed: int, split: str) -> list[Task]:
            mine = [task for task in solved if belongs(split, self.name, task.id)]
            if len(mine) < count:
                raise TasksExhausted(f"{self.name} has {len(mine)} tasks of split {split!r}, not {count}")
            return sorted(mine, key=lambda task: seed_of(seed, task.id))[:count]

        return Environment(
            name=self.name,
            about=f"imported: {self.name}",
            generate=generate,
            tools=self.tools,
            grader=lambda: self.grader,
            budget=budget,
            gold=lambda task: self.gold(task) or follow([""]),
            cheats={"say_done": lambda task: follow(["done"])},
        )
