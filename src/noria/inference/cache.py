"""Cache of past tokens: one row a running sequence, rows kept dense so that a decoding step is a plain slice.

What is kept of a token (keys and values, or a latent) is named by `ModelConfig.cache_states`.
L layers, R rows, G heads of a state, S positions, d its width, B rows in use, T new tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from noria.model import ModelConfig

CACHE_BYTES = 2_000_000_000


def affordable_rows(config: ModelConfig, context: int, most_bytes: int = CACHE_BYTES) -> int:
    """How many sequences of `context` tokens a cache of `most_bytes` holds; at least one."""
    return max(1, most_bytes // (context * config.cache_bytes_per_token()))


class RowCache:
    """Storage for `rows` sequences of up to `context` tokens: a tensor (L, R, G, S, d) a state.

    States are kept in `dtype`, except those that are summed up over a sequence (`log_forget`), which stay in fp32.
    """

    def __init__(self, config: ModelConfig, rows: int, context: int, dtype: torch.dtype = torch.float32) -> None:
        self.states_LRGSd = {
            name: torch.zeros(
                config.layers, rows, heads, context, width, dtype=torch.float32 if name == "log_forget" else dtype
            )
            for name, (heads, width) in config.cache_states().items()
        }

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one row over another; used to close the gap of a finished row."""
        for store in self.states_LRGSd.values():
            store[:, target, :, :length] = store[:, source, :, :length]

    def spread(self, source_B: Tensor, first: int, length: int) -> None:
        """Row `first + i` becomes a copy of row `source_B[i]`, its first `length` positions."""
        rows = slice(first, first + len(source_B))
        for store in self.states_LRGSd.values():
            store[:, rows, :, :length] = store[:, source_B, :, :length]

    def view(self, first: int, positions_BT: Tensor) -> CacheView:
        """The rows from `first` on, as the model's forward pass sees them; new tokens go to `positions_BT`."""
        return CacheView(self, first, positions_BT)


class CacheView:
    """The cache of B consecutive rows during one forward pass (implements model.attention.LayerCache)."""

    def __init__(self, store: RowCache, first: int, positions_BT: Tensor) -> None:
        self._store = store
        self._rows = slice(first, first + positions_BT.shape[0])
        self._row_index = torch.arange(first, first + positions_BT.shape[0])[:, None]
        self.positions_BT = positions_BT
        self._end = int(positions_BT.max()) + 1

    def mask(self) -> Tensor:
        """(B, 1, T, S): a token at position p sees positions 0..p. Stale entries beyond p are never seen."""
        return (torch.arange(self._end) <= self.positions_BT[..., None])[:, None]

    def extend(self, layer: int, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, new_BGTd in states.items():
            store_RGSd = self._store.states_LRGSd[name][layer]
            store_RGSd[self._row_index, :, self.positions_BT] = new_BGTd.transpose(1, 2).to(store_RGSd.dtype)
            found[name] = store_RGSd[self._rows, :, : self._end]
        return found
