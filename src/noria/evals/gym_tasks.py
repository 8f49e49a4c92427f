"""Families of reasoning-gym as tasks: prompts that ask for a short answer, graded by the family's own scorer.

The split of a task is a function of its prompt, so that training and held-out tasks never share one, whatever the
seeds: families with small numbers repeat themselves.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from noria.grading import grader_ref
from noria.types import Message, Task, digest, seed_of

Split = Literal["train", "heldout"]
HELD_OUT_TENTHS = 2  # of each family's prompts
DRAWS_FOR_ONE = 60  # of the generator, for each task wanted, before the family counts as exhausted


class GymFamily(BaseModel):
    """One family at one difficulty."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern="^[a-z][a-z0-9_]*$", description="name of the family in this run")
    gym: str = Field(description="its name in reasoning-gym")
    config: dict[str, int | float | bool | str] = Field(default={}, description="its settings in reasoning-gym")
    prompt: str = Field(
        default="{question}",
        description="what is asked: {question} is reasoning-gym's own, other names are of the item's metadata",
    )
    system: str = Field(default="", description="a system message before it; empty: what the chat template puts there")
    train: int | None = Field(default=None, ge=1, description="training tasks of this family, if not as many as of all")
    heldout: int | None = Field(default=None, ge=2, description="held-out tasks of this family, likewise")
    shots: int = Field(
        default=0, ge=0, le=16, description="solved examples shown before the question, as earlier turns"
    )

    @field_validator("gym")
    @classmethod
    def _exists(cls, value: str) -> str:
        from reasoning_gym.factory import DATASETS

        if value not in DATASETS:
            near = difflib.get_close_matches(value, DATASETS, n=3)
            raise ValueError(f"reasoning-gym has no family of this name; near it: {', '.join(near) or 'none'}")
        return value

    @model_validator(mode="after")
    def _accepted(self) -> GymFamily:
        """Let the family itself check its settings, before any work."""
        from reasoning_gym.factory import DATASETS

        try:
            settings = DATASETS[self.gym][1](**self.config)
            settings.validate()
        except (TypeError, ValueError, AssertionError) as error:
            raise ValueError(f"{self.name}: reasoning-gym refuses the config of {self.gym}: {error}") from error
        try:
            next(_questions(self, 1, 0, None))
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"{self.name}: prompt names {error}, which an item of {self.gym} does not have") from error
        return self


class FamilyTooSmall(ValueError):
    """The family has fewer distinct prompts in this split than were asked for."""


def gym_tasks(family: GymFamily, count: int, seed: int, split: Split, domain: str) -> list[Task]:
    """`count` distinct tasks; equal arguments give equal tasks. Raises FamilyTooSmall.

    The examples shown are of the training split, the same before every question, and no tasks themselves.
    """
    grader = grader_ref("gym")
    shown: list[tuple[str, Mapping[str, Any]]] = []
    answers: set[str] = set()
    for question, entry in _questions(family, family.shots, seed_of("gym examples", family.name), "train"):
        if (
            len(shown) < family.shots and entry["answer"] not in answers
        ):  # of several answers, so that none is hinted at
            shown.append((question, entry))
            answers.add(entry["answer"])
    examples = [Message("system", family.system)] if family.system else []
    examples += [message for question, entry in shown for message in _turns(question, str(entry["answer"]))]
    used = {question for question, _ in shown}
    tasks: dict[str, Task] = {}
    for question, entry in _questions(family, count, seed_of("gym", family.name, split, seed), split):
        identity = digest(family.gym, question)
        if len(tasks) < count and question not in used:
            messages = (*examples, Message("user", question))
            hidden = {"gym": family.gym, "entry": entry}
            answer = "" if entry["answer"] is None else str(entry["answer"])  # some families have scorers alone
            tasks[identity] = Task(identity, messages, grader, answer, family.name, domain, hidden=hidden)
    if len(tasks) < count or len(shown) < family.shots:
        raise FamilyTooSmall(
            f"{family.name} ({family.gym}) gave {len(tasks)} distinct {split} tasks and {len(shown)} examples, not "
            f"{count} and {family.shots}: ask for fewer, or widen its config"
        )
    return list(tasks.values())


def split_of(identity: str) -> Split:
    """A pure function of a task's id: two tenths are held out."""
    return "heldout" if int(digest("split", identity)[:8], 16) % 10 < HELD_OUT_TENTHS else "train"


def _turns(question: str, answer: str) -> tuple[Message, Message]:
    return Message("user", question), Message("assistant", answer)


def _questions(
    family: GymFamily, count: int, seed: int, split: Split | None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(question as asked, entry) of distinct questions of `split` (None: any), as long as draws for `count` last."""
    from reasoning_gym.factory import create_dataset

    data = create_dataset(family.gym, seed=seed % 2**31, size=max(1, count * DRAWS_FOR_ONE), **family.config)
    seen: set[str] = set()
    for index in range(len(data) if count else 0):
        entry = json.loads(json.dumps(data[index]))  # as a grader will read it back
        question = family.prompt.format(question=entry["question"].strip(), **_spelled(entry["metadata"]))
        if question not in seen and split in (None, split_of(digest(family.gym, question))):
            seen.add(question)
            yield question, entry
        if len(seen) > count * 2 + family.shots * 4:
            return


def _spelled(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Lists as people write them: 4, 22."""
    return {
        name: ", ".join(map(str, value)) if isinstance(value, list) else value
        for name, value in metadata.items()
        if name != "question"
    }
