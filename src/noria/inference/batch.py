"""What one step computes, as tensors: N tokens side by side, each with its place in the cache.

N tokens, B rows (a row a chunk), T tokens of the longest row, S tokens that the longest row may see.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from noria.inference.cache import BLOCK, PagedCache, PagedView
from noria.inference.scheduler import Chunk


@dataclass(frozen=True)
class Group:
    """Rows padded to one length, for what works on (B, T); a row is padded with its last token, over again."""

    index_BT: Tensor  # where among the N
    slot_BS: Tensor

    def view(self, batch: Batch, cache: PagedCache) -> PagedView:
        return PagedView(cache, batch.position_N[self.index_BT], batch.slot_N[self.index_BT], self.slot_BS)


@dataclass(frozen=True)
class Batch:
    token_N: Tensor
    position_N: Tensor
    row_N: Tensor  # int32
    slot_N: Tensor  # where in the cache the token's states go
    tables: Tensor  # int32 (B, blocks of the longest row): where each row's earlier tokens lie
    last_B: Tensor  # where among the N each row ends
    counts: tuple[int, ...]

    @functools.cached_property
    def groups(self) -> list[Group]:
        """The rows of a single token, and the others."""
        rows = range(len(self.counts))
        parts = [[row for row in rows if self.counts[row] == 1], [row for row in rows if self.counts[row] > 1]]
        return [self._group(part) for part in parts if part]

    def _group(self, rows: list[int]) -> Group:
        longest = max(self.counts[row] for row in rows)
        last_B1 = self.last_B[rows][:, None]
        count_B1 = torch.tensor([self.counts[row] for row in rows])[:, None]
        index_BT = (last_B1 - count_B1 + 1 + torch.arange(longest)).minimum(last_B1)
        seen = int(self.position_N[last_B1].max()) + 1
        slot_BS = (self.tables[rows].long()[:, :, None] * BLOCK + torch.arange(BLOCK)).flatten(1)[:, :seen]
        return Group(index_BT, slot_BS)


def batch_of(chunks: Ordered[Chunk[Any]]) -> Batch:
    """The tensors of a plan."""
    counts = tuple(chunk.count for chunk in chunks)
    tokens: list[int] = []
    positions: list[int] = []
    for chunk in chunks:
        first = chunk.sequence.computed
        tokens += chunk.sequence.tokens[first : first + chunk.count]
        positions += range(first, first + chunk.count)
    widest = max(len(chunk.sequence.blocks) for chunk in chunks)
    tables = torch.tensor(
        [chunk.sequence.blocks + [0] * (widest - len(chunk.sequence.blocks)) for chunk in chunks], dtype=torch.int32
    )
    count_B = torch.tensor(counts)
    row_N = torch.repeat_interleave(torch.arange(len(chunks)), count_B)
    position_N = torch.tensor(positions)
    slot_N = tables[row_N, position_N // BLOCK].long() * BLOCK + position_N % BLOCK
    return Batch(torch.tensor(tokens), position_N, row_N.int(), slot_N, tables, count_B.cumsum(0) - 1, counts)
