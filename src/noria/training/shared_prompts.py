"""Rows that begin alike are computed as one: a prompt once for all replies to it.

The samples of a group share their prompt, and so do the two replies of a preference. One row then holds the prompt and
after it each reply, which sees the prompt and itself (`model/masks.py`); positions go on from the prompt in each.
States, losses and gradients are those of separate rows, rounded in another order.

B rows of T positions, G rows of S positions that stand for them, N targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from noria.model import ModelConfig, Transformer
from noria.model.masks import SharedPrompts
from noria.training.batch import TokenBatch


@dataclass(frozen=True)
class Reply:
    """`chosen`: which of its tokens predict targets."""

    tokens: list[int]
    chosen: list[int]


@dataclass(frozen=True)
class Layout:
    """`place_N` is where in G * S each target is predicted."""

    tokens_GS: Tensor
    positions_GS: Tensor
    place_N: Tensor
    mask: SharedPrompts


def chosen_states(model: Transformer, batch: TokenBatch, chosen_BT: Tensor) -> Tensor:
    """(N, D) final states that predict the chosen targets, row by row."""
    tokens_BT = batch.tokens_BT[:, :-1]
    if batch.segment_BT is not None:
        return model.hidden(tokens_BT, segment_BT=batch.segment_BT[:, :-1])[chosen_BT]
    shared_ND = shared_states(model, tokens_BT, chosen_BT)
    return model.hidden(tokens_BT)[chosen_BT] if shared_ND is None else shared_ND


def shared_states(model: Transformer, tokens_BT: Tensor, chosen_BT: Tensor) -> Tensor | None:
    """(N, D) final states at the chosen positions, row by row; None where separate rows cost no more."""
    if not _is_plain(model.config) or bool(chosen_BT[:, 0].any()):  # then some row has no prompt
        return None
    layout = lay_together(tokens_BT, chosen_BT)
    width, (rows, length) = model.config.width, tokens_BT.shape
    if _cost(layout.tokens_GS.numel(), layout.mask.pairs, width) >= _cost(rows * length, rows * length**2 // 2, width):
        return None
    hidden_GSD = model.hidden(layout.tokens_GS, layout.positions_GS, mask=layout.mask)
    return hidden_GSD.flatten(0, 1)[layout.place_N]


def lay_together(tokens_BT: Tensor, chosen_BT: Tensor) -> Layout:
    """Neighbouring rows with equal tokens up to their first chosen position share a row.

    Each reply begins with a copy of the prompt's last token, the one that predicts it.
    """
    groups: list[tuple[list[int], list[Reply]]] = []
    for tokens, chosen in zip(tokens_BT.tolist(), chosen_BT.tolist(), strict=True):
        places = [place for place, is_chosen in enumerate(chosen) if is_chosen]
        if not places:
            continue
        prompt = tokens[: places[0]]
        reply = Reply(tokens[places[0] : places[-1] + 1], [place - places[0] for place in places])
        if groups and groups[-1][0] == prompt:
            groups[-1][1].append(reply)
        else:
            groups.append((prompt, [reply]))
    width = max(len(prompt) + sum(len(reply.tokens) for reply in replies) for prompt, replies in groups)
    tokens_GS: list[list[int]] = []
    positions_GS: list[list[int]] = []
    prompt_spans: list[range] = []  # places in G * S
    reply_spans: list[range] = []
    row_of: list[int] = []
    place_N: list[int] = []
    for row, (prompt, replies) in enumerate(groups):
        tokens, positions = list(prompt), list(range(len(prompt)))
        prompt_spans.append(range(row * width, row * width + len(prompt)))
        for reply in replies:
            start, length = row * width + len(tokens), len(reply.tokens)
            place_N += [start + place for place in reply.chosen]
            reply_spans.append(range(start, start + length))
            row_of.append(row)
            tokens += reply.tokens
            positions += range(len(prompt), len(prompt) + length)
        padding = [0] * (width - len(tokens))
        tokens_GS.append(tokens + padding)
        positions_GS.append(positions + padding)
    device = tokens_BT.device
    return Layout(
        torch.tensor(tokens_GS, device=device),
        torch.tensor(positions_GS, device=device),
        torch.tensor(place_N, device=device),
        SharedPrompts.of_spans(prompt_spans, reply_spans, row_of, len(groups) * width, device),
    )


def _is_plain(config: ModelConfig) -> bool:
    """Whether a token's state depends on nothing but the tokens that it sees and their positions.

    Windows and forgetting count the tokens between, and the loads of experts count every token.
    """
    return config.local is None and not config.forget_gate and config.moe is None


def _cost(tokens: int, pairs: int, width: int) -> int:
    """Of a block, up to a factor: 24 D^2 operations a token in its matrices, 4 D a pair that attention computes."""
    return 6 * width * tokens + pairs
