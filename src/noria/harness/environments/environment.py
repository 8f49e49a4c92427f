"""What an environment is: one Python file that makes agent tasks and says how they are done, cheated and judged.

The file sets `ENVIRONMENT = Environment(...)`. It is found by its name in this folder, or is any .py file of a user;
`noria env check` runs it through the gates of `harness/gates.py`. docs/environments.md walks through one.
"""

from __future__ import annotations

import importlib
import importlib.util
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from noria.data.tokenizer import CALL
from noria.grading import Grader
from noria.harness.error_line import error_line
from noria.harness.program import Program, load_program
from noria.harness.rollout import Budget
from noria.harness.scripted import Policy
from noria.harness.subagents import SubAgents
from noria.harness.tools import AnyTool
from noria.harness.well_formed import wrong_in_environment
from noria.types import Message, Task, digest, seed_of

FOLDER = Path(__file__).parent
HELDOUT_TENTHS = range(0, 3)  # of all keys, by their digest: see `is_heldout`
TRIES = 200  # draws a task that is asked for

Draw = Callable[[random.Random, str], Task | None]  # (generator, split) -> a task, or None where it is not of the split


@dataclass(frozen=True)
class Environment:
    """`generate(count, seed, split)` gives equal tasks for equal arguments, and no task in two splits.

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


class EnvironmentFileError(ValueError):
    """The file is no environment; the message names the file, the line where there is one, and what is wrong."""


class TasksExhausted(ValueError):
    """The split has fewer distinct tasks than were asked for."""


def environment_names() -> list[str]:
    """The environments that come with noria, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", Path(__file__).stem))


def load_environment(environment: Path | str) -> Environment:
    """An environment from a file, or one that comes with noria by its name. Raises EnvironmentFileError.

    The file's code runs in this process: it is your own code, not a model's.
    """
    path = Path(environment)
    if path.suffix != ".py":
        if str(environment) not in environment_names():
            known = ", ".join(environment_names())
            raise EnvironmentFileError(f"no environment {str(environment)!r}: give a .py file, or one of {known}")
        path = FOLDER / f"{environment}.py"
    try:
        source = path.read_text(encoding="utf-8")
    except OSError as error:
        raise EnvironmentFileError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise EnvironmentFileError(f"{path}: is no text in UTF-8: {error}") from error
    inside = path.resolve().parent == FOLDER.resolve()
    name = f"noria.harness.environments.{path.stem}" if inside else f"noria_environment_{digest(source)[:12]}"
    made = getattr(_module(path, name), "ENVIRONMENT", None)
    if not isinstance(made, Environment):
        raise EnvironmentFileError(f"{path}: sets no ENVIRONMENT = Environment(...)")
    if wrong := wrong_in_environment(made):
        raise EnvironmentFileError(f"{path}: {wrong}")
    return replace(made, version=digest(source))


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


def _module(path: Path, name: str) -> object:
    if name.startswith("noria."):
        return importlib.import_module(name)
    if name in sys.modules:
        return sys.modules[name]
    whole = path.resolve()
    spec = importlib.util.spec_from_file_location(name, whole)
    if spec is None or spec.loader is None:
        raise EnvironmentFileError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: its classes and its grader's version look it up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's file may raise anything; it is told where
        del sys.modules[name]
        line = error_line(error, str(whole)) or 1
        raise EnvironmentFileError(f"{path}:{line}: {type(error).__name__}: {error}") from error
    return module
