"""Causal self-attention with rotary positions, grouped key/value heads and QK-norm.

B batch, T new tokens, S cached tokens, D width, H query heads, G key/value heads, d head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noria.model.config import ModelConfig
from noria.model.rope import rotary_angles, rotate

__all__ = ["Attention", "LayerCache", "attend", "rotary_angles", "rotate"]


class LayerCache(Protocol):
    """What attention needs of a cache; the cache itself lives in `inference/cache.py`.

    The names and shapes of the states come from `ModelConfig.cache_states`.
    """

    def extend(self, layer: int, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Store the new tokens' states, each (B, heads, T, width), and return all so far: each (B, heads, S, width)."""
        ...


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.rotated = layer, config.is_rotated(layer)
        self.heads, self.kv_heads, self.head_width = config.heads, config.kv_heads, config.head_width
        self.scale, self.soft_cap = config.attention_scale, config.attention_soft_cap
        own, shared = config.heads * config.head_width, config.kv_heads * config.head_width
        self.query = nn.Linear(config.width, own, bias=config.qkv_bias)
        self.key = nn.Linear(config.width, shared, bias=config.qkv_bias)
        self.value = nn.Linear(config.width, shared, bias=config.qkv_bias)
        self.output = nn.Linear(own, config.width, bias=False)
        self.query_norm = nn.RMSNorm(config.head_width, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(config.head_width, eps=config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: LayerCache | None
    ) -> Tensor:
        """`mask` is True where a query may look, (B or 1, 1, T, S); None means plain causal attention over the row."""
        rows, length, _ = x_BTD.shape
        query = self.query(x_BTD).view(rows, length, self.heads, self.head_width).transpose(1, 2)
        key = self.key(x_BTD).view(rows, length, self.kv_heads, self.head_width).transpose(1, 2)
        value = self.value(x_BTD).view(rows, length, self.kv_heads, self.head_width).transpose(1, 2)
        query, key = self.query_norm(query), self.key_norm(key)
        if self.rotated:
            query, key = rotate(query, *rotary), rotate(key, *rotary)
        if cache is not None:
            states = cache.extend(self.layer, {"key": key, "value": value})
            key, value = states["key"], states["value"]
        mixed_BHTd = attend(query, key, value, mask, self.scale, self.soft_cap)
        return self.output(mixed_BHTd.transpose(1, 2).reshape(rows, length, -1))


def attend(
    query_BHTd: Tensor,
    key_BGSd: Tensor,
    value_BGSd: Tensor,
    mask: Tensor | None,
    scale: float | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """softmax(scale q.k) v (B, H, T, d) over what `mask` allows (None: causal); scores pass c tanh(s/c) under a cap."""
    shared = query_BHTd.shape[1] // key_BGSd.shape[1]
    if soft_cap is None:
        return F.scaled_dot_product_attention(
            query_BHTd,
            key_BGSd,
            value_BGSd,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=shared != 1,
        )
    key, value = key_BGSd.repeat_interleave(shared, 1), value_BGSd.repeat_interleave(shared, 1)
    scale = query_BHTd.shape[-1] ** -0.5 if scale is None else scale
    score_BHTS = soft_cap * torch.tanh(query_BHTd @ key.mT * (scale / soft_cap))
    if mask is None:
        mask = torch.ones(score_BHTS.shape[-2:], dtype=torch.bool, device=score_BHTS.device).tril()
    return score_BHTS.masked_fill(~mask, -torch.inf).softmax(-1) @ value
