"""Rows that begin alike are computed as one: a prompt once for all replies to it.

The samples of a group share their prompt, and so do the two replies of a preference. One row then holds the prompt and
after it each reply, which sees the prompt and itself; positions go on from the prompt in each. States, losses and
gradients are those of separate rows, rounded in another order.

B rows of T positions, G rows of S positions that stand for them, N targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from noria.model import ModelConfig, Transformer
from noria.training.batch import TokenBatch


@dataclass(frozen=True)
class Reply:
    """`chosen`: which of its tokens predict targets."""

    tokens: list[int]
    chosen: list[int]


@dataclass(frozen=True)
class Layout:
    """`owner_GS`: 0 the prompt, k its k-th reply, -1 padding. `place_N` is where in G * S each target is predicted."""

    tokens_GS: Tensor
    positions_GS: Tensor
    owner_GS: Tensor
    place_N: Tensor

    def mask(self) -> Tensor:
        """(G, 1, S, S), True where a token sees another: nothing later, the prompt, and its own reply."""
        owner_GS = self.owner_GS
        causal = torch.ones(owner_GS.shape[1], owner_GS.shape[1], dtype=torch.bool, device=owner_GS.device).tril()
        own = owner_GS[:, None, :, None] == owner_GS[:, None, None, :]
        return (own | (owner_GS == 0)[:, None, None, :]) & causal


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
    if _cost(layout.tokens_GS, model.config.width) >= _cost(tokens_BT, model.config.width):
        return None
    hidden_GSD = model.hidden(layout.tokens_GS, layout.positions_GS, mask=layout.mask())
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
    shape = (len(groups), max(len(prompt) + sum(len(reply.tokens) for reply in replies) for prompt, replies in groups))
    tokens_GS, positions_GS = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    owner_GS = torch.full(shape, -1)
    place_N: list[int] = []
    for row, (prompt, replies) in enumerate(groups):
        end = 0
        for owner, part in enumerate([prompt, *(reply.tokens for reply in replies)]):
            start, end = end, end + len(part)
            tokens_GS[row, start:end] = torch.tensor(part, dtype=torch.long)
            positions_GS[row, start:end] = torch.arange(len(part)) + (len(prompt) if owner else 0)
            owner_GS[row, start:end] = owner
            if owner:
                place_N += [row * shape[1] + start + place for place in replies[owner - 1].chosen]
    device = tokens_BT.device
    return Layout(*(part.to(device) for part in (tokens_GS, positions_GS, owner_GS, torch.tensor(place_N))))


def _is_plain(config: ModelConfig) -> bool:
    """Whether a token's state depends on nothing but the tokens that it sees and their positions.

    Windows and forgetting count the tokens between, and the loads of experts count every token.
    """
    return config.local is None and not config.forget_gate and config.moe is None


def _cost(tokens: Tensor, width: int) -> int:
    """Of a block, up to a factor: 24 D^2 operations a token in its matrices, 4 T D in attention to T tokens."""
    return tokens.numel() * (6 * width + tokens.shape[1])
