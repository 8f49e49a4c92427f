"""Paged cache of past tokens: blocks of a fixed number of tokens, found again by what they hold.

A full block is named by the hash of its tokens and of all before them. A freed block keeps its name until it is given
out again, so that the free list is the cache of prefixes (the idea of vLLM's automatic prefix caching).

What is kept of a token (keys and values, or a latent) is named by `ModelConfig.cache_states`. L layers, S slots (those
of block i are i * BLOCK to (i + 1) * BLOCK - 1), G heads of a state, d its width, B rows, T new tokens.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from noria.model import ModelConfig

CACHE_BYTES = 2_000_000_000
BLOCK = 32  # tokens; a block of one layer of SmolLM2-135M is 24 kB in bf16


def affordable_rows(config: ModelConfig, context: int, most_bytes: int = CACHE_BYTES) -> int:
    """How many sequences of `context` tokens a cache of `most_bytes` holds in fp32; at least one."""
    return max(1, most_bytes // (context * config.cache_bytes_per_token()))


class BlockPool:
    """Who holds which block. Blocks are shared by count of holders; those without a holder are free, oldest first."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._holders = [0] * blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(blocks))
        self._block_of: dict[bytes, int] = {}
        self._name_of: dict[int, bytes] = {}

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self) -> int | None:
        """An unheld block, whose content is forgotten; None when every block is held."""
        if not self._free:
            return None
        block, _ = self._free.popitem(last=False)
        name = self._name_of.pop(block, None)
        if name is not None:
            del self._block_of[name]
        self._holders[block] = 1
        return block

    def find(self, name: bytes) -> int | None:
        """The block of that content, with one holder more."""
        block = self._block_of.get(name)
        if block is not None:
            self.share(block)
        return block

    def share(self, block: int) -> None:
        self._free.pop(block, None)
        self._holders[block] += 1

    def name(self, block: int, name: bytes) -> None:
        """From now on the full block can be found. Where another holds the same, that one stays the one found."""
        if name not in self._block_of and block not in self._name_of:
            self._block_of[name], self._name_of[block] = block, name

    def give_back(self, blocks: Sequence[int]) -> None:
        """Last block first: a prefix is of use without its end, an end is not without its prefix."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if not self._holders[block]:
                self._free[block] = None

    def forget(self) -> None:
        """No content is found any more: the weights that computed it have changed."""
        self._block_of.clear()
        self._name_of.clear()


def chain(name_before: bytes, tokens: Sequence[int]) -> bytes:
    """The name of a full block: of its tokens and, through the name of the block before it, of all earlier ones."""
    return hashlib.blake2b(name_before + array("q", tokens).tobytes(), digest_size=16).digest()


class PagedCache:
    """Storage: a tensor (L, S, G, d) a state in `dtype`; what is summed up over a sequence (`log_forget`) in fp32."""

    def __init__(self, config: ModelConfig, blocks: int, dtype: torch.dtype = torch.float32) -> None:
        self.states_LSGd = {
            name: torch.zeros(
                (config.layers, blocks * BLOCK, heads, width), dtype=torch.float32 if name == "log_forget" else dtype
            )
            for name, (heads, width) in config.cache_states().items()
        }

    def copy(self, source: int, target: int) -> None:
        """Block `target` becomes a copy of `source` in every layer."""
        for store in self.states_LSGd.values():
            store[:, target * BLOCK : (target + 1) * BLOCK] = store[:, source * BLOCK : (source + 1) * BLOCK]


class PagedView:
    """The cache of B rows during one forward pass (implements model.attention.LayerCache): rows are gathered.

    `slot_BT` is where the new tokens go, `slot_BS` where all that a row may see lie, in their order.
    """

    def __init__(self, cache: PagedCache, positions_BT: Tensor, slot_BT: Tensor, slot_BS: Tensor) -> None:
        self._cache, self._slot_BT, self._slot_BS = cache, slot_BT, slot_BS
        self.positions_BT = positions_BT

    def mask(self) -> Tensor:
        """(B, 1, T, S): a token at position p sees positions 0..p."""
        return (torch.arange(self._slot_BS.shape[1]) <= self.positions_BT[..., None])[:, None]

    def extend(self, layer: int, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, new_BGTd in states.items():
            store_SGd = self._cache.states_LSGd[name][layer]
            store_SGd[self._slot_BT] = new_BGTd.transpose(1, 2).to(store_SGd.dtype)
            found[name] = store_SGd[self._slot_BS].transpose(1, 2)
        return found
