"""What one step computes, as tensors: N tokens side by side, each with its place in the cache.

N tokens, B rows (a row a chunk), T tokens of the longest row, S tokens that the longest row may see.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from noria.inference.cache import BLOCK, PagedCache, PagedView
from noria.inference.scheduler import Chunk

# New tokens times tokens seen, of a group: where attention holds a number for each pair and head, 4 MB a head in fp32.
# It bounds memory for long prompts, and what is computed in vain where lengths differ.
PAIRS = 2**20


@dataclass(frozen=True)
class _Piece:
    """`count` tokens of a row, from place `first` among the N on; the last of them sees `seen` tokens."""

    row: int
    first: int
    count: int
    seen: int


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
        """What to compute one after the other, for what works on (B, T): rows of a single token; then rows of like
        lengths; then, piece by piece, those that would see more than PAIRS alone."""
        rows = range(len(self.counts))
        found = (
            [self._group(singles)] if (singles := [self._piece(row) for row in rows if self.counts[row] == 1]) else []
        )
        together: list[_Piece] = []
        for row in sorted((row for row in rows if self.counts[row] > 1), key=lambda row: self.counts[row]):
            piece = self._piece(row)
            if piece.count * piece.seen > PAIRS:
                found += [self._group([part]) for part in _parts(piece)]
                continue
            pairs = (len(together) + 1) * piece.count * max(each.seen for each in (*together, piece))
            if together and (piece.count > 2 * together[0].count or pairs > PAIRS):
                found.append(self._group(together))
                together = []
            together.append(piece)
        return [*found, self._group(together)] if together else found

    def _piece(self, row: int) -> _Piece:
        last = int(self.last_B[row])
        return _Piece(row, last - self.counts[row] + 1, self.counts[row], int(self.position_N[last]) + 1)

    def _group(self, pieces: Ordered[_Piece]) -> Group:
        first_B1 = torch.tensor([piece.first for piece in pieces])[:, None]
        count_B1 = torch.tensor([piece.count for piece in pieces])[:, None]
        index_BT = first_B1 + torch.arange(int(count_B1.max())).minimum(count_B1 - 1)
        table_Bb = self.tables[[piece.row for piece in pieces]].long()
        slot_BS = (table_Bb[:, :, None] * BLOCK + torch.arange(BLOCK)).flatten(1)
        return Group(index_BT, slot_BS[:, : max(piece.seen for piece in pieces)])


def _parts(piece: _Piece) -> Iterator[_Piece]:
    """As long as PAIRS allows, given what the last token of the piece sees."""
    step = max(1, PAIRS // piece.seen)
    before = piece.seen - piece.count
    for start in range(0, piece.count, step):
        count = min(step, piece.count - start)
        yield _Piece(piece.row, piece.first + start, count, before + start + count)


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
