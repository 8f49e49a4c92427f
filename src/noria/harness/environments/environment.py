"""What an environment is: one Python file that makes agent tasks and says how they are done, cheated and judged.

The file sets `ENVIRONMENT = Environment(...)`. `harness/environment_file.py` loads it, from this folder by its name or
any .py file of a user; `noria env check` runs it through the gates of `harness/gates.py`. docs/environments.md walks
through one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from noria.data.tokenizer import CALL
from noria.grading import Grader
from noria.harness.program import Program, load_program
from noria.harness.rollout import Budget
from noria.harness.scripted import Policy
from noria.harness.subagents import SubAgents
from noria.harness.tools import AnyTool
from noria.types import Message, Task, digest, seed_of

HELDOUT_TENTHS = range(0, 3)  # of all keys, by their digest: see `is_heldout`
TRIES = 200  # draws a task that is asked for

Draw = Callable[[random.Random, str], Task | None]  # (generator, split) -> a task, or None where it is not of the split


@dataclass(frozen=True)
class Environment:
    """`generate(count, seed, split)` gives equal tasks for equal arguments, and no task in two splits. Where the split
    has fewer than `count`, it raises TasksExhausted: `noria env check` may ask for more than it was told to, to tell
    whether a cheat pays, and then makes do with those that there are.

    `gold(task)` solves the task with the tools, `cheats` are ways to look good without: each a policy for
    `ScriptedPolicy`. Policies see what the model would see; one for each task, so that it may know what is hidden.
    `reference(task, noise)` is a policy that slips with probability `noise`; `baselines.slipping` where not given.
    """

    name: str
    about: str
    generate: Callable[[int, int, str], list[Task]]
    tools: tuple[AnyTool, ...]
    grader: Callable[[], Grader]
    budget: Budget
    gold: Callable[[Task], Policy]
    cheats: Mapping[str, Callable[[Task], Policy]]
    dials: Mapping[str, str] = field(default_factory=dict)  # what makes a task harder: name -> values and meaning
    splits: tuple[str, ...] = ("train", "heldout")
    program: Program | None = None  # the harness program; "all_tools" where not given
    subagents: SubAgents | None = None  # where helpers may be made; `helper(task)` is the policy that replies for them
    helper: Callable[[Task], Policy] | None = None
    reference: Callable[[Task, float], Policy] | None = None
    tasks_to_check: int = 40  # for `noria env check`; fewer where a task is costly to run
    version: str = ""  # digest of the file; set when it is loaded

    @property
    def harness(self) -> Program:
        return self.program or load_program("all_tools")


class TasksExhausted(ValueError):
    """The split has fewer distinct tasks than were asked for."""


def distinct(draw: Draw, family: str, count: int, seed: int, split: str) -> list[Task]:
    """`count` distinct tasks of repeated draws: what most generators are. Raises TasksExhausted."""
    generator = random.Random(seed_of(family, seed, split))
    tasks: dict[str, Task] = {}
    for _ in range(max(1, count) * TRIES):
        if len(tasks) == count:
            return list(tasks.values())
        task = draw(generator, split)
        if task is not None:
            tasks.setdefault(task.id, task)
    raise TasksExhausted(f"{family} gave {len(tasks)} distinct tasks of split {split!r}, not {count}; ask for fewer")


def is_heldout(*key: str) -> bool:
    """Whether a task with this key belongs to the held-out three tenths: by digest, so that no two splits share one."""
    return int(digest(*key)[:8], 16) % 10 in HELDOUT_TENTHS


def belongs(split: str, *key: str) -> bool:
    """Whether a task with this key is of split "train" or "heldout"."""
    return is_heldout(*key) == (split != "train")


def call(tool: str, *arguments: object) -> str:
    """The reply that calls `tool`, in plain text."""
    return " ".join([f"{CALL}{tool}", *map(str, arguments)])


def follow(replies: Sequence[str]) -> Policy:
    """A policy that gives `replies` one after the other, told by its own past ones; what others said is passed over.

    After the last reply it repeats that one.
    """

    def policy(messages: Sequence[Message], seed: int) -> str:
        done = 0
        for message in messages:
            if message.role == "assistant" and done < len(replies) - 1 and message.content == replies[done]:
                done += 1
        return replies[done]

    return policy


def result_of(messages: Sequence[Message], reply: str) -> str | None:
    """What came back the last time that `reply` was made; None where it was not, or nothing has come yet."""
    for place in range(len(messages) - 2, -1, -1):
        if messages[place].role == "assistant" and messages[place].content == reply:
            return messages[place + 1].content
    return None
