"""Whether there is anything to learn: rewards all equal, or most of them missing, are found out before they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from noria.stages.open_model_replies import roller, room_of

if TYPE_CHECKING:
    from noria.artifacts.step import Report
    from noria.data.chat_tokenizer import ChatTokenizer
    from noria.model import Transformer
    from noria.posttraining import Grade
    from noria.training.compute import Precision
    from noria.types import Score, Task

ROWS = 32  # replies sampled together: where the rewards differ, as a rule no more are needed to see it


class NoSignal(ValueError):
    """The rewards say nothing, so training would only cost."""


@dataclass(frozen=True)
class FirstStep:
    """What the first training step samples."""

    prompts: int
    group: int
    max_tokens: int
    precision: Precision
    seed: int


def try_rewards(
    first: FirstStep,
    model: Transformer,
    tokenizer: ChatTokenizer,
    tasks: Sequence[Task],
    grade: Grade,
    report: Report,
) -> None:
    """Sample and grade what the first training step will, until two rewards differ. Raises NoSignal where none do."""
    from noria.posttraining.reinforce import step_tasks
    from noria.types import seed_of

    room = room_of(tasks, tokenizer, first.max_tokens, model)
    roll = roller(model, tokenizer, room, first.max_tokens, temperature=1.0, rows=ROWS, precision=first.precision)
    drawn = [task for task in step_tasks(tasks, first.prompts, 0, first.seed) for _ in range(first.group)]
    seeds = [seed_of(first.seed, 0, task.id, place) for place, task in enumerate(drawn)]
    scores: list[Score] = []
    for start in range(0, len(drawn), ROWS):
        report(start, len(drawn), "replies", "do their rewards differ?")
        part = drawn[start : start + ROWS]
        scores += grade(part, roll(part, seeds[start : start + ROWS]))
        if not lack(scores):
            return
    refuse_without_signal(scores)


def refuse_without_signal(scores: Sequence[Score], step: int = 0) -> None:
    """Raises NoSignal where most gradings fail, or where the first step's rewards are all equal."""
    if why := lack(scores, step):
        raise NoSignal(why)


def lack(scores: Sequence[Score], step: int = 0) -> str:
    """What a step's rewards lack for there to be something to learn; "" if nothing."""
    failed = [score for score in scores if score.value is None]
    if len(failed) > len(scores) / 2:
        return f"{len(failed)} of {len(scores)} gradings of step {step} failed, e.g.: {failed[0].evidence}"
    values = {score.value for score in scores if score.value is not None}
    if step == 0 and len(values) == 1:
        return (
            f"all {len(scores)} replies of the first step got the reward {values.pop():g}: the tasks are too hard, too "
            "easy, or the grader does not tell replies apart; nothing was trained"
        )
    return ""
