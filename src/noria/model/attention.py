"""Causal self-attention with rotary positions, grouped key/value heads and QK-norm.

B batch, T new tokens, S cached tokens, D width, H query heads, G key/value heads, d head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noria.model.blocked_attention import blocked_attention, is_faster
from noria.model.config import ModelConfig
from noria.model.masks import Mask, SharedPrompts
from noria.model.rope import rotary_angles, rotate

__all__ = ["Attention", "LayerCache", "attend", "rotary_angles", "rotate"]


class LayerCache(Protocol):
    """What attention needs of a cache; the cache itself lives in `inference/cache.py`.

    The names and shapes of the states come from `ModelConfig.cache_states`; a row store and a paged one can both serve.
    """

    positions_BT: Tensor  # where the new tokens lie among the S

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
        self.gate = output_gate(config)
        self.forget = nn.Linear(config.width, config.heads) if config.forget_gate else None
        self.query_norm = nn.RMSNorm(config.head_width, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(config.head_width, eps=config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor], mask: Mask | None, cache: LayerCache | None
    ) -> Tensor:
        """`mask` is True where a query may look, (B or 1, 1, T, S), or says it by part (`masks.SharedPrompts`); None
        means plain causal attention over the row."""
        rows, length, _ = x_BTD.shape
        query = self.query(x_BTD).view(rows, length, self.heads, self.head_width).transpose(1, 2)
        key = self.key(x_BTD).view(rows, length, self.kv_heads, self.head_width).transpose(1, 2)
        value = self.value(x_BTD).view(rows, length, self.kv_heads, self.head_width).transpose(1, 2)
        query, key = self.query_norm(query), self.key_norm(key)
        if self.rotated:
            query, key = rotate(query, *rotary), rotate(key, *rotary)
        states = {"key": key, "value": value}
        if self.forget is not None:
            states["log_forget"] = log_forget(self.forget(x_BTD))
        if cache is not None:
            states = cache.extend(self.layer, states)
        decay = decay_bias(states["log_forget"], cache) if self.forget is not None else None
        mixed_BHTd = attend(query, states["key"], states["value"], mask, self.scale, self.soft_cap, decay)
        if self.gate is not None:
            mixed_BHTd = gated(mixed_BHTd, self.gate(x_BTD))
        return self.output(mixed_BHTd.transpose(1, 2).reshape(rows, length, -1))


def attend(
    query_BHTd: Tensor,
    key_BGSd: Tensor,
    value_BGSd: Tensor,
    mask: Mask | None,
    scale: float | None = None,
    soft_cap: float | None = None,
    bias_BHTS: Tensor | None = None,
) -> Tensor:
    """softmax(scale q.k + bias) v (B, H, T, d) over what `mask` allows (None: causal; numbers are added to scores).

    Under a cap, scores pass c tanh(s/c) first.
    """
    if isinstance(mask, SharedPrompts):
        assert bias_BHTS is None
        return _attend_by_part(query_BHTd, key_BGSd, value_BGSd, mask, scale, soft_cap)
    shared = query_BHTd.shape[1] // key_BGSd.shape[1]
    if shared > 1 and query_BHTd.shape[2] == 1 and bias_BHTS is None and mask is not None and soft_cap is None:
        # One new token: the heads that share a key are rows of one product with it, 4 times faster than a head each.
        query_BGsd = query_BHTd.view(query_BHTd.shape[0], -1, shared, query_BHTd.shape[3])
        return F.scaled_dot_product_attention(query_BGsd, key_BGSd, value_BGSd, attn_mask=mask, scale=scale).reshape(
            *query_BHTd.shape[:3], -1
        )
    if mask is None and (bias_BHTS is not None or soft_cap is not None):
        mask = torch.ones(query_BHTd.shape[2], key_BGSd.shape[2], dtype=torch.bool, device=key_BGSd.device).tril()
    if bias_BHTS is not None and mask is not None:
        mask = bias_BHTS.masked_fill(~mask, -torch.inf).to(query_BHTd.dtype)
    if soft_cap is None and bias_BHTS is None and is_faster(query_BHTd, key_BGSd, value_BGSd):
        new, all_ = query_BHTd.shape[2], key_BGSd.shape[2]
        seen = torch.ones(1, 1, new, all_, dtype=torch.bool).tril(all_ - new) if mask is None else mask
        return blocked_attention(
            query_BHTd, key_BGSd, value_BGSd, seen, query_BHTd.shape[-1] ** -0.5 if scale is None else scale
        )
    if soft_cap is None and bias_BHTS is None and _is_short(query_BHTd, key_BGSd):
        return _short_attention(query_BHTd, key_BGSd, value_BGSd, mask, scale)
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
    assert mask is not None
    return score_BHTS.masked_fill(~mask, -torch.inf).softmax(-1) @ value


def _attend_by_part(
    query_GHTd: Tensor,
    key_GKTd: Tensor,
    value_GKTd: Tensor,
    mask: SharedPrompts,
    scale: float | None,
    soft_cap: float | None,
) -> Tensor:
    """Prompts over themselves, replies over their prompt and themselves: no reply computes anything for another one.

    G rows, K key/value heads.
    """
    key_prompts, value_prompts = mask.prompts(key_GKTd), mask.prompts(value_GKTd)
    key_both = mask.after_prompts(key_prompts, mask.replies(key_GKTd))
    value_both = mask.after_prompts(value_prompts, mask.replies(value_GKTd))
    prompts = attend(mask.prompts(query_GHTd), key_prompts, value_prompts, None, scale, soft_cap)
    query = mask.replies(query_GHTd)
    is_boolean = soft_cap is not None or is_faster(query, key_both, value_both) or _is_short(query, key_both)
    seen = mask.seen_E1RS if is_boolean else mask.added_E1RS
    return mask.joined(prompts, attend(query, key_both, value_both, seen, scale, soft_cap))


# On a CPU PyTorch's own kernel with its backward pass took 6.5 times as long as plain products at 67 tokens in bf16,
# and 2.4 times at 130 (32 rows, 9 heads of 64, one thread); longer rows would hold T x T shares for the backward pass.
SHORT = 192


def _is_short(query_BHTd: Tensor, key_BGSd: Tensor) -> bool:
    """Whether this is a bf16 training pass over short rows on a CPU, such as reinforcement learning on replies."""
    return (
        query_BHTd.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and torch.is_autocast_enabled("cpu")
        and torch.is_grad_enabled()
        and query_BHTd.shape[2] <= key_BGSd.shape[2] <= SHORT
    )


def _short_attention(
    query_BHTd: Tensor, key_BGSd: Tensor, value_BGSd: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    """softmax(scale q.k) v by three products, the heads that share a key stacked; softmax in fp32."""
    rows, heads, length, width = query_BHTd.shape
    groups, seen = key_BGSd.shape[1:3]
    stacked = query_BHTd.reshape(rows * groups, heads // groups * length, width)
    score_BHTS = (stacked @ key_BGSd.flatten(0, 1).mT).view(rows, heads, length, seen).float()
    if mask is None:
        mask = torch.ones(length, seen, dtype=torch.bool).tril()
    score_BHTS = (score_BHTS * (width**-0.5 if scale is None else scale)).masked_fill(~mask, -torch.inf)
    share = score_BHTS.softmax(-1).view(rows * groups, -1, seen)
    return (share.to(value_BGSd.dtype) @ value_BGSd.flatten(0, 1)).view(rows, heads, length, -1)


def output_gate(config: ModelConfig) -> nn.Linear | None:
    """The matrix of a gate on attention's output: a number a head, or one an element of it."""
    if config.attention_gate is None:
        return None
    outputs = config.heads * (1 if config.attention_gate == "head" else config.value_width)
    return nn.Linear(config.width, outputs, bias=False)


def gated(mixed_BHTd: Tensor, gate_BTg: Tensor) -> Tensor:
    """Each head's output times the sigmoid of a gate made of attention's input (arXiv 2505.06708, place G1)."""
    rows, heads, length, _ = mixed_BHTd.shape
    return mixed_BHTd * torch.sigmoid(gate_BTg.view(rows, length, heads, -1).transpose(1, 2))


def log_forget(gate_BTH: Tensor) -> Tensor:
    """log f (B, H, T, 1), f = sigmoid(w x + b) the share of its past that a head keeps at this token; in fp32."""
    return F.logsigmoid(gate_BTH.float()).transpose(1, 2)[..., None]


def decay_bias(log_forget_BHS1: Tensor, cache: LayerCache | None) -> Tensor:
    """What forgetting adds to the scores (B, H, T, S): for query i and key j, sum of log f over j+1..i.

    Forgetting Transformer, arXiv 2503.02130, section 3: with c the running sum, c_i - c_j. Entries that the mask hides
    may hold anything finite. The paper needs no rotation beside it (nope_every = 1).
    """
    sum_BHS1 = log_forget_BHS1.cumsum(2)
    at_query = sum_BHS1
    if cache is not None:
        index = cache.positions_BT[:, None, :, None].expand(-1, sum_BHS1.shape[1], -1, -1)
        at_query = sum_BHS1.gather(2, index)
    return at_query - sum_BHS1.mT
