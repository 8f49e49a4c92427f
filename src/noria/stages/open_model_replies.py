"""Replies of an open model, to be trained on or to be judged: the model as it is loaded, its room, its rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noria.data.chat_tokenizer import ChatTokenizer
    from noria.model import Transformer
    from noria.posttraining import Roll
    from noria.training.compute import Precision
    from noria.types import Task


def load(folder: Path) -> tuple[Transformer, ChatTokenizer]:
    from noria.data.chat_tokenizer import load_chat_tokenizer
    from noria.model import load_model

    return load_model(folder), load_chat_tokenizer(folder)


def room_of(tasks: Sequence[Task], tokenizer: ChatTokenizer, max_tokens: int, model: Transformer) -> int:
    """Tokens of context that the longest prompt and its reply need, at most the model's own."""
    longest = max((len(tokenizer.render(messages)) for messages in {task.messages for task in tasks}), default=1)
    return min(model.config.context, longest + max_tokens + 1)


def roller(
    model: Transformer,
    tokenizer: ChatTokenizer,
    room: int,
    max_tokens: int,
    temperature: float,
    rows: int = 128,
    precision: Precision = "float32",
) -> Roll:
    """Rollouts with the weights as they are at each call: the engine notices that they have changed."""
    from noria.evals.benchmarks import seeded_single_turn
    from noria.inference import Engine, affordable_rows

    most = max(1, min(rows, affordable_rows(model.config, room)))
    engine = Engine(model, tokenizer.end, max_rows=most, context=room, precision=precision)
    return seeded_single_turn(engine, tokenizer, room, max_tokens, temperature, tokenizer.ends)
