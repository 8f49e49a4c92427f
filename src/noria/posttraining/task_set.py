"""The tasks that post-training learns from, on disk: demonstrations, RL tasks, general demonstrations."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from noria.evals.tasks import FAMILIES, FamilyExhausted, demonstrate, generate
from noria.types import Task, task_from_json, task_to_json

Demonstration = tuple[Task, str]


def make_task_set(
    folder: Path,
    report: Callable[[float, float, str, str], None],
    *,
    demonstrations: int,
    rl_tasks: int,
    general_demonstrations: int,
    seed: int,
) -> dict[str, Any]:
    """Write demonstrations.jsonl, rl.jsonl, general.jsonl; `demonstrations` and `rl_tasks` are counts a family.

    Demonstrated tasks are not RL tasks too: what RL adds must not be memory. Returns the counts.
    """
    shown: list[Demonstration] = []
    trained: list[Task] = []
    for done, family in enumerate(FAMILIES):
        report(done, len(FAMILIES), "families", family)
        tasks = as_many_as_there_are(family, demonstrations + rl_tasks, seed)
        shown += [(task, demonstrate(task)) for task in tasks[:demonstrations]]
        trained += tasks[demonstrations:]
    general: list[Demonstration] = []
    for family in ("helpful", "safety"):
        tasks = generate(family, general_demonstrations + rl_tasks, seed, "train")
        general += [(task, demonstrate(task)) for task in tasks[:general_demonstrations]]
        trained += tasks[general_demonstrations:]
    write_demonstrations(folder / "demonstrations.jsonl", shown)
    write_demonstrations(folder / "general.jsonl", general)
    (folder / "rl.jsonl").write_text("".join(task_to_json(task) + "\n" for task in trained))
    return {"demonstrations": len(shown), "rl_tasks": len(trained), "general": len(general)}


def as_many_as_there_are(family: str, count: int, seed: int) -> list[Task]:
    """`count` training tasks, or all that the family has (never fewer than half of what was asked: that raises)."""
    try:
        return generate(family, count, seed, "train")
    except FamilyExhausted as exhausted:
        if exhausted.found < count / 2:
            raise
        return generate(family, exhausted.found, seed, "train")


def evenly(demonstrations: Sequence[Demonstration], count: int, seed: int) -> list[Demonstration]:
    """At most `count` demonstrations, drawn without replacement and as evenly over the families as there are any."""
    dice = random.Random(seed)
    by_family: dict[str, list[Demonstration]] = {}
    for task, reply in demonstrations:
        by_family.setdefault(task.family, []).append((task, reply))
    piles = [dice.sample(pile, len(pile)) for _, pile in sorted(by_family.items())]
    in_turn = [item for layer in zip_longest(*piles) for item in layer if item is not None]
    return in_turn[:count]


def write_demonstrations(path: Path, demonstrations: Sequence[Demonstration]) -> None:
    lines = [json.dumps({"task": json.loads(task_to_json(task)), "reply": reply}) for task, reply in demonstrations]
    path.write_text("".join(line + "\n" for line in lines))


def read_demonstrations(path: Path) -> list[Demonstration]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(task_from_json(json.dumps(row["task"])), row["reply"]) for row in rows]


def read_tasks(path: Path) -> list[Task]:
    return [task_from_json(line) for line in path.read_text().splitlines()]
