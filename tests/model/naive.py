"""The decoder once more, written from the formulas: token by token, head by head, from a model's named weights.

Slow and without any of the model's code: no masks, no batches, no fused attention, no cache.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def naive_logits(config, weights: dict[str, Tensor], ids: list[int]) -> Tensor:
    """(T, V) for one document; `weights` is a model's state_dict."""
    x = [weights["embedding.weight"][token] * config.embedding_scale for token in ids]
    for layer in range(config.layers):
        own = {n.removeprefix(f"blocks.{layer}."): w for n, w in weights.items() if n.startswith(f"blocks.{layer}.")}
        mixed = attention(config, layer, own, [norm(config, t, own["attention_norm.weight"]) for t in x])
        x = [t + post(config, own, "attention_post_norm", y) for t, y in zip(x, mixed, strict=True)]
        fed = [feed_forward(config, own, norm(config, t, own["ffn_norm.weight"])) for t in x]
        x = [t + post(config, own, "ffn_post_norm", y) for t, y in zip(x, fed, strict=True)]
    head = weights["embedding.weight" if config.tied else "head.weight"]
    logits = torch.stack([head @ norm(config, t, weights["final_norm.weight"]) for t in x])
    return capped(logits, config.logit_soft_cap)


def norm(config, x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.square().mean() + config.norm_eps).sqrt()


def post(config, own, name: str, y: Tensor) -> Tensor:
    return norm(config, y, own[f"{name}.weight"]) if config.post_norm else y


def capped(score: Tensor, cap: float | None) -> Tensor:
    return score if cap is None else cap * torch.tanh(score / cap)


def feed_forward(config, own, x: Tensor) -> Tensor:
    up = own["up.weight"] @ x
    if config.activation == "squared_relu":
        return own["down.weight"] @ up.clamp(min=0) ** 2
    gate = own["gate.weight"] @ x
    if config.activation == "swiglu":
        return own["down.weight"] @ (gate / (1 + (-gate).exp()) * up)
    gelu = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    return own["down.weight"] @ (gelu * up)


def attention(config, layer: int, own, x: list[Tensor]) -> list[Tensor]:
    d, scale = config.head_width, config.attention_scale or config.head_width**-0.5
    outputs = []
    for t in range(len(x)):
        heads = []
        for h in range(config.heads):
            shared = h // (config.heads // config.kv_heads)
            q = turned(config, layer, projected(config, own, "query", h, x[t]), t)
            seen = [s for s in range(t + 1) if sees(config, layer, t, s)]
            keys = [turned(config, layer, projected(config, own, "key", shared, x[s]), s) for s in seen]
            values = [projected(config, own, "value", shared, x[s]) for s in seen]
            score = capped(torch.stack([scale * (q @ k) for k in keys]), config.attention_soft_cap)
            heads.append(sum(w * v for w, v in zip(score.softmax(0), values, strict=True)))
        assert heads[0].shape == (d,)
        outputs.append(own["attention.output.weight"] @ torch.cat(heads))
    return outputs


def sees(config, layer: int, t: int, s: int) -> bool:
    return s <= t and (not config.is_local(layer) or t - s < config.local.window)


def projected(config, own, name: str, head: int, x: Tensor) -> Tensor:
    rows = slice(head * config.head_width, (head + 1) * config.head_width)
    y = own[f"attention.{name}.weight"][rows] @ x
    if config.qkv_bias:
        y = y + own[f"attention.{name}.bias"][rows]
    if config.qk_norm and name != "value":
        y = norm(config, y, own[f"attention.{name}_norm.weight"])
    return y


def turned(config, layer: int, vector: Tensor, position: int) -> Tensor:
    """The vector with pair (i, i + d/2) turned by position * frequency(i)."""
    if not config.is_rotated(layer):
        return vector
    half = len(vector) // 2
    base, scaling = config.rope_base, config.rope_scaling
    if config.is_local(layer) and config.local.rope_base is not None:
        base, scaling = config.local.rope_base, None
    result = torch.empty_like(vector)
    for i in range(half):
        angle, factor = position * frequency(base, i, half, scaling), temperature(scaling)
        a, b = vector[i], vector[i + half]
        result[i] = factor * (a * math.cos(angle) - b * math.sin(angle))
        result[i + half] = factor * (b * math.cos(angle) + a * math.sin(angle))
    return result


def frequency(base: float, i: int, half: int, scaling) -> float:
    plain = base ** (-i / half)
    if scaling is None:
        return plain
    divided = plain / scaling.factor
    if scaling.kind == "linear":
        return divided
    turns = scaling.original_context * plain / (2 * math.pi)
    if scaling.kind == "llama3":
        if turns < scaling.low_frequency_factor:
            return divided
        if turns > scaling.high_frequency_factor:
            return plain
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        smooth = (turns - low) / (high - low)
        return (1 - smooth) * divided + smooth * plain

    def dimension(times):  # d/2 log_base(context / 2 pi times): where a frequency makes `times` turns
        return half * math.log(scaling.original_context / (2 * math.pi * times), base)

    low, high = math.floor(dimension(scaling.beta_fast)), math.ceil(dimension(scaling.beta_slow))
    low, high = max(low, 0), min(high, 2 * half - 1)
    ramp = min(1.0, max(0.0, (i - low) / max(high - low, 0.001)))
    return ramp * divided + (1 - ramp) * plain


def temperature(scaling) -> float:
    if scaling is None or scaling.kind != "yarn":
        return 1.0
    return scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1
