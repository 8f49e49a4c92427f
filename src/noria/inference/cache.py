"""Key/value cache: one row a running sequence, rows kept dense so that a decoding step is a plain slice.

L layers, R rows, G key/value heads, S positions, d head width, B rows in use, T new tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from noria.model import ModelConfig


class RowCache:
    """Storage for `rows` sequences of up to `context` tokens: two tensors (L, R, G, S, d) in fp32."""

    def __init__(self, config: ModelConfig, rows: int, context: int) -> None:
        shape = (config.layers, rows, config.kv_heads, context, config.head_width)
        self.key_LRGSd = torch.zeros(shape)
        self.value_LRGSd = torch.zeros(shape)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one row over another; used to close the gap of a finished row."""
        for store in (self.key_LRGSd, self.value_LRGSd):
            store[:, target, :, :length] = store[:, source, :, :length]

    def view(self, first: int, positions_BT: Tensor) -> CacheView:
        """The rows from `first` on, as the model's forward pass sees them; new tokens go to `positions_BT`."""
        return CacheView(self, first, positions_BT)


class CacheView:
    """The cache of B consecutive rows during one forward pass (implements model.attention.LayerCache)."""

    def __init__(self, store: RowCache, first: int, positions_BT: Tensor) -> None:
        self._store = store
        self._rows = slice(first, first + positions_BT.shape[0])
        self._row_index = torch.arange(first, first + positions_BT.shape[0])[:, None]
        self._positions_BT = positions_BT
        self._end = int(positions_BT.max()) + 1

    def mask(self) -> Tensor:
        """(B, 1, T, S): a token at position p sees positions 0..p. Stale entries beyond p are never seen."""
        return (torch.arange(self._end) <= self._positions_BT[..., None])[:, None]

    def extend(self, layer: int, key_BGTd: Tensor, value_BGTd: Tensor) -> tuple[Tensor, Tensor]:
        key_RGSd, value_RGSd = self._store.key_LRGSd[layer], self._store.value_LRGSd[layer]
        key_RGSd[self._row_index, :, self._positions_BT] = key_BGTd.transpose(1, 2)
        value_RGSd[self._row_index, :, self._positions_BT] = value_BGTd.transpose(1, 2)
        return key_RGSd[self._rows, :, : self._end], value_RGSd[self._rows, :, : self._end]
