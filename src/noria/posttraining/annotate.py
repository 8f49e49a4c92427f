"""Traces to TokenBatches: tokens exactly as sampled, and what an algorithm says of each.

A row is a chain of model calls whose prompts extend each other; a trace that rewrites its history has several. Prompts
and tool results carry no weight. B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from noria.model import Transformer
from noria.posttraining.rl_config import Aggregation
from noria.posttraining.sft import Example, trace_examples
from noria.training import TokenBatch
from noria.training.step import target_logprobs
from noria.types import Trace


@dataclass(frozen=True)
class Row:
    """Where a row comes from: its trace, and which of the trace's sampled tokens is the first of its own."""

    trace: int
    first: int
    item: Example
    logprobs: Sequence[float]


def rows_of(traces: Sequence[Trace], keep: Sequence[bool]) -> list[Row]:
    """The rows of the traces kept. Where prompts are most of their tokens, those of one prompt stand together, so that
    it is computed once (`training/shared_prompts.py`); else the shortest come first, so that little is padded."""
    rows: list[Row] = []
    for index, (trace, kept) in enumerate(zip(traces, keep, strict=True)):
        if not kept:
            continue
        logprobs = [logprob for call in trace.calls for logprob in call.logprobs]
        first = 0
        for item in trace_examples(trace):
            sampled = sum(item.trained)
            rows.append(Row(index, first, item, logprobs[first : first + sampled]))
            first += sampled
    if 2 * sum(len(_prompt(row)) for row in rows) <= sum(len(row.item.token_ids) for row in rows):
        return sorted(rows, key=lambda row: len(row.item.token_ids))
    return sorted(rows, key=lambda row: (len(prompt := _prompt(row)), prompt, len(row.item.token_ids)))


def _prompt(row: Row) -> list[int]:
    """What comes before its first sampled token."""
    return list(row.item.token_ids[: [*row.item.trained, True].index(True)])


def lay_out(rows: Sequence[Row], pad: int) -> TokenBatch:
    """Sampled tokens with weight 1 and the sampler's log-probabilities; no advantage yet."""
    if not rows:
        return weightless(pad)
    shape = (len(rows), max(len(row.item.token_ids) for row in rows))
    tokens_BT = torch.full(shape, pad, dtype=torch.long)
    w_rl, behaviour = torch.zeros(shape), torch.zeros(shape)
    for index, row in enumerate(rows):
        length = len(row.item.token_ids)
        trained = torch.tensor(row.item.trained)
        tokens_BT[index, :length] = torch.tensor(row.item.token_ids)
        w_rl[index, :length] = trained.float()
        behaviour[index, :length][trained] = torch.tensor(row.logprobs, dtype=torch.float32)
    return TokenBatch(tokens_BT, w_ce=torch.zeros(shape)[:, 1:], w_rl=w_rl[:, 1:], behaviour_logprob=behaviour[:, 1:])


def weightless(pad: int) -> TokenBatch:
    """The batch of a step that has nothing to learn from."""
    return TokenBatch(torch.full((1, 2), pad), torch.zeros(1, 1))


def spread(rows: Sequence[Row], batch: TokenBatch, values: Sequence[Sequence[float]]) -> Tensor:
    """(B, T - 1): for each trace one value a sampled token, put where that token is the target."""
    assert batch.w_rl is not None
    found_BT = torch.zeros(batch.w_rl.shape)
    for index, row in enumerate(rows):
        mine = batch.w_rl[index] != 0
        found_BT[index, mine] = torch.tensor(values[row.trace][row.first : row.first + int(mine.sum())])
    return found_BT


def gathered(rows: Sequence[Row], batch: TokenBatch, value_BT: Tensor, traces: int) -> list[list[float]]:
    """The inverse of `spread`: one list a trace, in the order of sampling."""
    assert batch.w_rl is not None
    found: list[list[float]] = [[] for _ in range(traces)]
    places = sorted(range(len(rows)), key=lambda index: (rows[index].trace, rows[index].first))
    for index in places:
        found[rows[index].trace] += value_BT[index, batch.w_rl[index] != 0].tolist()
    return found


def annotate(traces: Sequence[Trace], advantages: Sequence[float], pad: int) -> TokenBatch:
    """Rows in the order of `rows_of`; sampled tokens carry their trace's advantage, all others no weight.

    Traces with advantage 0 carry no weight either: they add no gradient, but their tokens count in no average (DAPO's
    filtering of groups without signal, arXiv 2503.14476).
    """
    rows = rows_of(traces, [advantage != 0.0 for advantage in advantages])
    batch = lay_out(rows, pad)
    if batch.w_rl is None:
        return batch
    advantage_B1 = torch.tensor([[advantages[row.trace]] for row in rows])
    return replace(batch, advantage=batch.w_rl * advantage_B1)


def aggregated(batch: TokenBatch, form: Aggregation, sequences: int, max_tokens: int | None) -> TokenBatch:
    """`batch` with the weights that make the loop's mean over n weighted tokens the wanted mean.

    token: 1. sequence: n / (S |o|), so that sum w x / n = mean over S rows of their own means. constant:
    n / (sequences * max_tokens), so that the divisor does not depend on what was sampled (Dr. GRPO, arXiv 2503.20783).
    """
    if form == "token" or batch.w_rl is None:
        return batch
    weighted_BT = batch.w_rl != 0
    tokens_B1 = weighted_BT.sum(1, keepdim=True)
    n, rows = int(tokens_B1.sum()), int((tokens_B1 > 0).sum())
    if form == "sequence":
        factor = n / (max(1, rows) * tokens_B1.clamp_min(1).float())
    else:
        assert max_tokens is not None
        factor = torch.full_like(tokens_B1, n / (sequences * max_tokens), dtype=torch.float32)
    w_kl = None if batch.w_kl is None else batch.w_kl * factor
    return replace(batch, w_rl=batch.w_rl * factor, w_kl=w_kl)


def with_reference(
    batch: TokenBatch, reference: Transformer, weight: float = 1.0, temperature: float = 1.0
) -> TokenBatch:
    """`batch` with the reference model's log-probability of every sampled token and a KL weight where RL has one."""
    assert batch.w_rl is not None and batch.segment_BT is None
    logprobs = target_logprobs(reference, batch, temperature=temperature)
    return replace(batch, w_kl=batch.w_rl * weight, reference_logprob=logprobs)
