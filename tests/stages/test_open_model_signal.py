"""Rewards are tried before they cost: the first step's replies, until two of them differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from noria.posttraining import GrpoConfig
from noria.posttraining.reinforce import sample_step
from noria.stages import open_model_signal
from noria.stages.open_model_replies import load, roller, room_of
from noria.stages.open_model_signal import FirstStep, NoSignal, lack, refuse_without_signal, try_rewards
from noria.types import GraderRef, Message, Score, Task, Trace
from tests.tiny_model import write_tiny_model

FIRST = FirstStep(prompts=4, group=8, max_tokens=4, precision="float32", seed=3)
TASKS = [Task(name, (Message("user", f"say {name}"),), GraderRef("x", "1"), "", "own", "train") for name in "abcdefgh"]


def graded(value: float | None) -> Score:
    return Score("failed" if value is None else "graded", GraderRef("x", "1"), value, evidence="no endpoint")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "model", context=96, activation="swiglu")


def sampled(folder: Path, rewards: Sequence[float | None]) -> list[Trace]:
    """The replies that were asked for when they are rewarded so, over and over."""
    seen: list[Trace] = []

    def grade(tasks: Sequence[Task], traces: Sequence[Trace]) -> list[Score]:
        seen.extend(traces)
        return [graded(rewards[place % len(rewards)]) for place in range(len(traces))]

    try_rewards(FIRST, *load(folder), TASKS, grade, lambda done, total, unit="", note="": None)
    return seen


def test_no_more_is_sampled_than_shows_a_difference(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_model_signal, "ROWS", 8)
    assert len(sampled(folder, [0.0, 1.0])) == 8
    with pytest.raises(NoSignal, match="all 32 replies of the first step got the reward"):
        sampled(folder, [0.5])
    with pytest.raises(NoSignal, match="32 of 32 gradings of step 0 failed"):
        sampled(folder, [None])


def test_later_steps_may_be_without_a_difference_but_not_without_grades() -> None:
    refuse_without_signal([graded(1.0)] * 4, step=1)
    refuse_without_signal([graded(None), graded(None), graded(0.0), graded(1.0)])
    assert "3 of 4 gradings of step 7 failed" in lack([graded(None)] * 3 + [graded(0.0)], step=7)


def test_what_is_tried_is_what_the_first_step_of_training_samples(folder: Path) -> None:
    config = GrpoConfig(steps=2, prompts=FIRST.prompts, group=FIRST.group, max_tokens=FIRST.max_tokens)
    model, tokenizer = load(folder)
    room = room_of(TASKS, tokenizer, FIRST.max_tokens, model)
    roll = roller(model, tokenizer, room, FIRST.max_tokens, temperature=1.0)
    first = sample_step(TASKS, 0, 0, roll, lambda tasks, traces: [graded(0.0)] * 32, config, FIRST.seed, None)
    tried = sampled(folder, [0.0, 1.0])
    assert [(trace.task_id, trace.seed, trace.reply) for trace in tried] == [
        (trace.task_id, trace.seed, trace.reply) for trace in first.traces
    ]
