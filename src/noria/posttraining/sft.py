"""Supervised fine-tuning: only what the assistant says is trained on; short examples are packed into rows."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field

from noria.data.chat_tokenizer import ChatTokenizer
from noria.model import Transformer
from noria.training import Annotated, History, LoopConfig, Progress, TokenBatch, train
from noria.types import Message, Trace, seed_of


class SftConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(default=2, ge=1, description="passes over the examples")
    batch_tokens: int = Field(default=8192, ge=64, description="packed tokens an optimiser step")
    learning_rate: float = Field(default=2e-3, gt=0, le=1)


# What the model sees before it speaks, and what it says, as ids.
Turn = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Example:
    """Token ids with, for each, whether it is trained on."""

    token_ids: tuple[int, ...]
    trained: tuple[bool, ...]


def example(tokenizer: ChatTokenizer, prompt: Sequence[Message], reply: str) -> Example:
    """A demonstration: the prompt in chat form is context, the reply and its end token are trained on."""
    return _chained([_turn(tokenizer, prompt, reply)])[0]


def conversation(tokenizer: ChatTokenizer, messages: Sequence[Message]) -> list[Example]:
    """A conversation of several turns: what the assistant says is trained on, each turn after the very tokens that the
    model would see there.

    Usually one example. Where the chat template rewrites what came before (some drop earlier thinking), a turn whose
    prompt does not extend the last one starts an example of its own. Raises ValueError without an assistant's message.
    """
    turns = [
        _turn(tokenizer, messages[:place], message.content)
        for place, message in enumerate(messages)
        if message.role == "assistant"
    ]
    if not turns:
        raise ValueError(f"a conversation of {len(messages)} messages has none of the assistant to train on")
    return _chained(turns)


def trace_examples(trace: Trace) -> list[Example]:
    """The sampled tokens of a trace, exactly as sampled; calls whose prompts extend each other share one example.

    Those of the main agent come first, then each sub-agent's. Raises ValueError for replies of a chat endpoint, whose
    tokens are unknown.
    """
    calls = trace.calls
    if any(call.endpoint for call in calls):
        raise ValueError(
            f"trace {trace.id}: a chat endpoint's replies have no token ids, so they can't be trained on as sampled"
        )
    return _chained([(call.prompt_ids, call.token_ids) for call in calls])


def _turn(tokenizer: ChatTokenizer, prompt: Sequence[Message], reply: str) -> Turn:
    return tuple(tokenizer.render(prompt)), (*tokenizer.encode_reply(reply), tokenizer.end)


def _chained(turns: Iterable[Turn]) -> list[Example]:
    examples: list[Example] = []
    for context, target in turns:
        if examples and context[: len(examples[-1].token_ids)] == examples[-1].token_ids:
            before = examples.pop()
            new_context = context[len(before.token_ids) :]
            ids = (*before.token_ids, *new_context, *target)
            trained = (*before.trained, *(False,) * len(new_context), *(True,) * len(target))
        else:
            ids, trained = (*context, *target), (False,) * len(context) + (True,) * len(target)
        examples.append(Example(ids, trained))
    return examples


def pack(examples: Sequence[Example], row_tokens: int, pad: int) -> TokenBatch:
    """Rows of `row_tokens` holding whole examples one after another; each is its own segment. See `pack_order`.

    An example's first token is never trained on: nothing of its own document comes before it.
    """
    return pack_order(examples, row_tokens, pad)[0]


def pack_order(examples: Sequence[Example], row_tokens: int, pad: int) -> tuple[TokenBatch, list[tuple[int, int]]]:
    """First fit: each example goes to the first row with room. The batch, and (row, start) of each example in order.

    Raises ValueError for an example longer than a row.
    """
    places: list[tuple[int, int]] = []
    used: list[int] = []
    for item in examples:
        length = len(item.token_ids)
        if length > row_tokens:
            raise ValueError(f"an example of {length} tokens does not fit into rows of {row_tokens}")
        row = next((index for index, filled in enumerate(used) if filled + length <= row_tokens), len(used))
        if row == len(used):
            used.append(0)
        places.append((row, used[row]))
        used[row] += length
    tokens_BT = torch.full((len(used), row_tokens), pad, dtype=torch.long)
    segment_BT = torch.full((len(used), row_tokens), -1, dtype=torch.long)
    w_ce = torch.zeros(len(used), row_tokens)
    for number, (item, (row, start)) in enumerate(zip(examples, places, strict=True)):
        stop = start + len(item.token_ids)
        tokens_BT[row, start:stop] = torch.tensor(item.token_ids)
        segment_BT[row, start:stop] = number
        w_ce[row, start + 1 : stop] = torch.tensor(item.trained[1:], dtype=torch.float32)
    return TokenBatch(tokens_BT, w_ce[:, 1:], segment_BT), places


def sft_steps(examples: Sequence[Example], config: SftConfig, seed: int) -> list[list[int]]:
    """Which examples each optimiser step of all epochs takes: every epoch reshuffled, steps of about equal tokens."""
    if not examples:
        raise ValueError("there are no examples to train on")
    steps: list[list[int]] = []
    for epoch in range(config.epochs):
        order = list(range(len(examples)))
        random.Random(seed_of("sft", seed, epoch)).shuffle(order)
        taken: list[int] = []
        tokens = 0
        for index in order:
            length = len(examples[index].token_ids)
            if taken and tokens + length > config.batch_tokens:
                steps.append(taken)
                taken, tokens = [], 0
            taken.append(index)
            tokens += length
        steps.append(taken)
    return steps


def fine_tune(
    model: Transformer,
    examples: Sequence[Example],
    config: SftConfig,
    pad: int,
    seed: int,
    progress: Progress | None = None,
) -> History:
    """Train `model` in place on `examples`: linear decay to zero after a short warm-up."""
    steps = sft_steps(examples, config, seed)

    def annotate(step: int) -> Annotated:
        return Annotated(pack([examples[index] for index in steps[step]], model.config.context, pad))

    return train(model, annotate, sft_loop(len(steps), config), progress)


def sft_loop(steps: int, config: SftConfig) -> LoopConfig:
    """A short warm-up, then linear decay to zero; no weight decay."""
    return LoopConfig(
        steps=steps,
        learning_rate=config.learning_rate,
        schedule="linear",
        warmup_steps=max(1, steps // 20),
        weight_decay=0.0,
    )
