"""Log-probabilities of given tokens, with the likeliest at each place: teacher scores, references, echoed prompts.

T tokens of a sequence, N tokens computed at once, V vocabulary, K likeliest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from noria.inference.batch import batch_of
from noria.inference.cache import BLOCK, PagedCache
from noria.inference.network import Network
from noria.inference.scheduler import Chunk
from noria.inference.scheduler import Sequence as Row
from noria.model import ModelConfig, Transformer

LOGITS_AT_ONCE = 256  # places whose logits exist at one time: T x V of a long text would be gigabytes


@dataclass(frozen=True)
class Logprobs:
    """Of every token of a sequence but the first, given those before it, in fp32.

    `top_ids` and `top_logprobs` are the K likeliest at each place, the likeliest first; K is 0 where none were asked.
    """

    token_logprobs: Tensor  # (T - 1,)
    top_ids: Tensor  # int64 (T - 1, K)
    top_logprobs: Tensor  # (T - 1, K)


@torch.inference_mode()
def score_sequences(
    network: Network,
    config: ModelConfig,
    dtype: torch.dtype,
    sequences: Sequence[Sequence[int]],
    top_k: int,
    tokens_at_once: int,
) -> list[Logprobs]:
    """One a sequence. Computes up to `tokens_at_once` tokens at a time, in a cache of `dtype` of its own that holds as
    many, or the longest sequence."""
    nothing = Logprobs(torch.empty(0), torch.empty(0, top_k, dtype=torch.long), torch.empty(0, top_k))
    scores = [nothing for _ in sequences]
    for group in _groups(sequences, tokens_at_once):
        rows = _rows(sequences, group)
        cache = PagedCache(config, sum(len(row.blocks) for row in rows), dtype)
        parts: dict[int, list[Logprobs]] = {index: [] for index in group}
        while waiting := [row for row in rows if row.waits_for]:
            chunks = [Chunk(row, min(row.waits_for, tokens_at_once)) for row in waiting]
            hidden_ND = network.hidden(batch_of(chunks), cache, every=True)
            for chunk, hidden_TD in zip(chunks, hidden_ND.split([chunk.count for chunk in chunks]), strict=True):
                first = chunk.sequence.computed + 1
                following = sequences[chunk.sequence.owner][first : first + chunk.count]
                parts[chunk.sequence.owner] += _read_off(network, hidden_TD, following, top_k)
                chunk.sequence.computed += chunk.count
        for index, found in parts.items():
            scores[index] = Logprobs(
                torch.cat([part.token_logprobs for part in found]),
                torch.cat([part.top_ids for part in found]),
                torch.cat([part.top_logprobs for part in found]),
            )
    return scores


def _groups(sequences: Sequence[Sequence[int]], tokens_at_once: int) -> Iterator[list[int]]:
    """Sequences of like lengths that fit together, by index; one that does not fit is alone."""
    group: list[int] = []
    held = 0
    for index in sorted(range(len(sequences)), key=lambda index: len(sequences[index])):
        count = len(sequences[index]) - 1
        if count < 1:
            continue
        if group and held + count > tokens_at_once:
            yield group
            group, held = [], 0
        group.append(index)
        held += count
    if group:
        yield group


def _rows(sequences: Sequence[Sequence[int]], group: Sequence[int]) -> list[Row[int]]:
    """Sequences to compute, all but the last token of each, with blocks side by side."""
    rows: list[Row[int]] = []
    taken = 0
    for index in group:
        tokens = list(sequences[index][:-1])
        count = -(-len(tokens) // BLOCK)
        rows.append(Row(index, tokens, blocks=list(range(taken, taken + count))))
        taken += count
    return rows


def _read_off(network: Network, hidden_TD: Tensor, following: Sequence[int], top_k: int) -> Iterator[Logprobs]:
    next_T1 = torch.tensor(following)[:, None]
    for start in range(0, len(hidden_TD), LOGITS_AT_ONCE):
        logprobs_NV = network.logits(hidden_TD[start : start + LOGITS_AT_ONCE]).log_softmax(-1)
        own_N1 = logprobs_NV.gather(1, next_T1[start : start + LOGITS_AT_ONCE])
        best = logprobs_NV.topk(top_k, -1)
        yield Logprobs(own_N1[:, 0], best.indices, best.values)


@torch.inference_mode()
def score(model: Transformer, sequences: Sequence[Sequence[int]], rows: int = 64) -> list[list[float]]:
    """Log-probability of every token given those before it: one list a sequence, one shorter than the sequence.

    By the model's own forward pass, for what is just being trained; an engine's `score` uses its packed weights.
    """
    scores: list[list[float]] = [[] for _ in sequences]
    scored = [index for index in range(len(sequences)) if len(sequences[index]) > 1]
    order = sorted(scored, key=lambda index: len(sequences[index]))
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        longest = max(len(sequences[index]) for index in chosen)
        tokens_BT = torch.zeros(len(chosen), longest, dtype=torch.long)
        for row, index in enumerate(chosen):
            tokens_BT[row, : len(sequences[index])] = torch.tensor(sequences[index])
        logprobs_BTV = model(tokens_BT[:, :-1]).log_softmax(-1)
        logprobs_BT = logprobs_BTV.gather(2, tokens_BT[:, 1:, None])[..., 0]
        for row, index in enumerate(chosen):
            scores[index] = logprobs_BT[row, : len(sequences[index]) - 1].tolist()
    return scores
