"""A paged cache with one block a row, for tests of the model's forward pass with a cache."""

from __future__ import annotations

import torch
from torch import Tensor

from noria.inference.cache import BLOCK, PagedCache, PagedView
from noria.model import ModelConfig


class RowCache:
    """Row i holds up to BLOCK tokens in block i."""

    def __init__(self, config: ModelConfig, rows: int) -> None:
        self.pages = PagedCache(config, rows)

    def view(self, first: int, positions_BT: Tensor) -> PagedView:
        """The rows from `first` on; new tokens go to `positions_BT`."""
        start_B1 = torch.arange(first, first + positions_BT.shape[0])[:, None] * BLOCK
        slot_BS = start_B1 + torch.arange(int(positions_BT.max()) + 1)
        return PagedView(self.pages, positions_BT, start_B1 + positions_BT, slot_BS)
