"""Causal self-attention with rotary positions, grouped key/value heads and QK-norm.

B batch, T new tokens, S cached tokens, D width, H query heads, G key/value heads, d head width.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noria.model.config import ModelConfig


class LayerCache(Protocol):
    """What attention needs of a key/value cache; the cache itself lives in `inference/cache.py`."""

    def extend(self, layer: int, key_BGTd: Tensor, value_BGTd: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values at their positions and return all so far: two (B, G, S, d)."""
        ...


def rotary_angles(positions_BT: Tensor, head_width: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine (B, 1, T, d/2) of rotary position embedding (RoFormer, arXiv 2104.09864, eq. 15)."""
    frequency = base ** (-torch.arange(0, head_width, 2, device=positions_BT.device, dtype=torch.float32) / head_width)
    angle_BTd = positions_BT.float()[..., None] * frequency
    return angle_BTd.cos()[:, None], angle_BTd.sin()[:, None]


def rotate(x_BHTd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + d/2) of each head by its position's angle; the layout of Llama's `rotate_half`."""
    first, second = x_BHTd.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.heads, self.kv_heads, self.head_width = layer, config.heads, config.kv_heads, config.head_width
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.key = nn.Linear(config.width, config.kv_heads * config.head_width, bias=False)
        self.value = nn.Linear(config.width, config.kv_heads * config.head_width, bias=False)
        self.output = nn.Linear(config.width, config.width, bias=False)
        self.query_norm = nn.RMSNorm(config.head_width, eps=1e-6) if config.qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(config.head_width, eps=1e-6) if config.qk_norm else nn.Identity()

    def forward(
        self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: LayerCache | None
    ) -> Tensor:
        """`mask` is True where a query may look, (B or 1, 1, T, S); None means plain causal attention over the row."""
        rows, length, width = x_BTD.shape
        query = self.query(x_BTD).view(rows, length, self.heads, self.head_width).transpose(1, 2)
        key = self.key(x_BTD).view(rows, length, self.kv_heads, self.head_width).transpose(1, 2)
        value = self.value(x_BTD).view(rows, length, self.kv_heads, self.head_width).transpose(1, 2)
        query, key = rotate(self.query_norm(query), *rotary), rotate(self.key_norm(key), *rotary)
        if cache is not None:
            key, value = cache.extend(self.layer, key, value)
        mixed_BHTd = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=self.heads != self.kv_heads
        )
        return self.output(mixed_BHTd.transpose(1, 2).reshape(rows, length, width))
