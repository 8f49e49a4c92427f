"""What an open model is trained and measured on: families of reasoning-gym, or a user's own tasks and grader.

Content: train.jsonl; heldout.jsonl (the same families, prompts never trained on); unseen.jsonl (families never trained
on); format.jsonl (the form of replies, a guard of general ability). Each line is a Task whose domain names its file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from noria.artifacts import Step, StepContext
from noria.artifacts.identity import file_hash
from noria.evals.benchmarks import Grading, grade
from noria.evals.gym_tasks import GymFamily
from noria.grading import grader_ref
from noria.grading.language_grader import LanguageGrader
from noria.types import Score, Task, Trace, task_from_json, task_to_json

STAGE = "s6_evaluation"
MEASURED = ("heldout", "unseen", "format")


class Config(BaseModel):
    """[tasks] of a recipe for an open model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    families: tuple[GymFamily, ...] = Field(default=(), description="trained on, and held out by prompt")
    unseen: tuple[GymFamily, ...] = Field(default=(), description="families that are measured and never trained on")
    train: int = Field(default=300, ge=1, description="training tasks a family")
    heldout: int = Field(default=40, ge=2, description="held-out tasks a family, trained or unseen")
    format: int = Field(default=60, ge=12, le=240, description="tasks about the form of a reply")
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _named_once(self) -> Config:
        names = [family.name for family in (*self.families, *self.unseen)]
        if len(set(names)) < len(names):
            raise ValueError(f"two families share a name: {', '.join(sorted(names))}")
        if not self.families:
            raise ValueError("families is empty: there is nothing to train on")
        trained = {family.gym for family in self.families}
        if both := sorted({family.gym for family in self.unseen} & trained):
            raise ValueError(f"unseen families are trained on: {', '.join(both)}")
        return self


@dataclass(frozen=True)
class TaskGrader:
    """Who grades the tasks of a set: each task's own grader, unless `grading` grades them all."""

    versions: dict[str, str]
    has_unseen: bool = False
    grading: Grading | None = None
    threshold: float = 1.0  # the value from which on an answer counts as right

    def grade(self, tasks: Sequence[Task], traces: Sequence[Trace]) -> list[Score]:
        return list((self.grading or grade)(tasks, traces))


class GymIdentity(BaseModel):
    families: tuple[GymFamily, ...]
    unseen: tuple[GymFamily, ...]
    train: int
    heldout: int
    format: int
    seed: int
    graders: dict[str, str] = Field(description="version of each grader; gym's names the release of reasoning-gym")


def gym(config: Config) -> tuple[Step, TaskGrader]:
    """The tasks of reasoning-gym's families, and the grader that is its own scorers."""
    grader = TaskGrader(own_versions("gym", "format"), bool(config.unseen))
    identity = GymIdentity(
        **{name: getattr(config, name) for name in type(config).model_fields}, graders=grader.versions
    )
    return Step("tasks", STAGE, "tasks", 2, identity, _gym), grader


class FileIdentity(BaseModel):
    """What a user's own tasks depend on. Where the files lie is no part of it."""

    tasks: str = Field(description="sha256 of the task file")
    heldout: str | None = Field(description="sha256 of the held-out file; None: split by id")
    grader: dict[str, Any] = Field(description="the grader as it was read")
    version: str
    max_tokens: int
    format: int
    seed: int
    _tasks: Path = PrivateAttr()
    _heldout: Path | None = PrivateAttr()


def from_file(
    tasks: Path, heldout: Path | None, grader: LanguageGrader, model: Step, max_tokens: int, seed: int, format: int = 60
) -> tuple[Step, TaskGrader]:
    """A user's own tasks and grader. Reads and checks both before any step runs.

    Raises TaskFileError with file and line, GraderError where the grader is broken.
    """
    from noria.grading.language_grader import refuse_broken

    _read_files(tasks, heldout, grader)  # for what it refuses
    refuse_broken(grader, _by_place(tasks, heldout, grader))
    identity = FileIdentity(
        tasks=file_hash(tasks),
        heldout=file_hash(heldout) if heldout else None,
        grader=grader.grader.model_dump(mode="json"),
        version=grader.version,
        max_tokens=max_tokens,
        format=format,
        seed=seed,
    )
    identity._tasks, identity._heldout = tasks, heldout
    step = Step("tasks", STAGE, "tasks", 1, identity, partial(_from_file, grader=grader), {"model": model})
    versions = {"language": grader.version, **own_versions("format")}
    return step, TaskGrader(versions, grading=grader.grade, threshold=grader.threshold)


def own_versions(*names: str) -> dict[str, str]:
    return {name: grader_ref(name).version for name in names}


def read(folder: Path, name: str) -> list[Task]:
    """The tasks of one file; none where the set has no such file."""
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        return []
    return [task_from_json(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(folder: Path, name: str, tasks: Sequence[Task]) -> None:
    lines = [task_to_json(task) + "\n" for task in tasks]
    (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def _read_files(tasks: Path, heldout: Path | None, grader: LanguageGrader) -> tuple[list[Task], list[Task]]:
    from noria.evals.rft_tasks import read_rft_tasks, refuse_unfit, split
    from noria.grading.grader_language import required_fields

    required = required_fields(grader.grader)
    train = read_rft_tasks(tasks, grader.ref, required)
    if heldout is None:
        return split(train, tasks)
    held_out = read_rft_tasks(heldout, grader.ref, required)
    refuse_unfit(train, held_out, heldout)
    return train, held_out


def _by_place(tasks: Path, heldout: Path | None, grader: LanguageGrader) -> dict[str, Task]:
    """All tasks, each by its file and line."""
    from noria.evals.rft_tasks import read_numbered
    from noria.grading.grader_language import required_fields

    required = required_fields(grader.grader)
    return {
        f"{path}:{number}": task
        for path in (tasks, heldout)
        if path
        for number, task in read_numbered(path, grader.ref, required).items()
    }


def _from_file(context: StepContext, grader: LanguageGrader) -> Mapping[str, Any]:
    from noria.data.chat_tokenizer import load_chat_tokenizer
    from noria.evals.instruction_tasks import instruction_tasks
    from noria.evals.rft_tasks import refuse
    from noria.model.folder import read_config

    config: FileIdentity = context.config
    train, held_out = _read_files(config._tasks, config._heldout, grader)
    folder = context.inputs["model"].content
    tokenizer, model_context = load_chat_tokenizer(folder), read_config(folder)[0].context
    by_place = _by_place(config._tasks, config._heldout, grader)
    lengths = {place: len(tokenizer.render(task.messages)) for place, task in by_place.items()}
    refuse(too_long(lengths, config.max_tokens, model_context))
    write(context.content, "train", train)
    write(context.content, "heldout", [replace(task, domain="heldout") for task in held_out])
    write(context.content, "format", instruction_tasks(config.format, config.seed, "format"))
    return {"train": len(train), "heldout": len(held_out), "format": config.format}


def too_long(lengths: Mapping[str, int], reply: int, context: int) -> list[str]:
    """What is wrong with prompts of so many tokens, each named by its file and line: room for a reply is needed too."""
    most = context - reply
    if most < 1:
        return [f"a reply of {reply} tokens leaves no room for a prompt in the model's context of {context}: lower it"]
    return [
        f"{place}: its prompt of {length} tokens leaves no room for a reply of {reply} in the model's context of "
        f"{context}, where a prompt may have {most}: shorten it, or lower the tokens of a reply"
        for place, length in lengths.items()
        if length > most
    ]


def _gym(context: StepContext) -> Mapping[str, Any]:
    from noria.evals.gym_tasks import gym_tasks
    from noria.evals.instruction_tasks import instruction_tasks

    config: GymIdentity = context.config
    made: dict[str, list[Task]] = {"train": [], "heldout": [], "unseen": []}
    total = len(config.families) + len(config.unseen)
    for done, family in enumerate((*config.families, *config.unseen)):
        context.report(done, total, "families", family.name)
        measured = "heldout" if family in config.families else "unseen"
        made[measured] += gym_tasks(family, family.heldout or config.heldout, config.seed, "heldout", measured)
        if family in config.families:
            made["train"] += gym_tasks(family, family.train or config.train, config.seed, "train", "train")
    made["format"] = instruction_tasks(config.format, config.seed, "format")
    for name, tasks in made.items():
        write(context.content, name, tasks)
    return {name: len(tasks) for name, tasks in made.items()}
