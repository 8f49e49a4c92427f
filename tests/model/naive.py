"""The decoder once more, written from the formulas: token by token, head by head, from a model's named weights.

Slow and without any of the model's code: no masks, no batches, no fused attention, no cache.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def naive_logits(config, weights: dict[str, Tensor], ids: list[int]) -> Tensor:
    """(T, V) for one document; `weights` is a model's state_dict."""
    stream = [[weights["embedding.weight"][token] * config.embedding_scale for token in ids]]
    for layer in range(config.layers):
        own = {n.removeprefix(f"blocks.{layer}."): w for n, w in weights.items() if n.startswith(f"blocks.{layer}.")}
        x = read(config, own.get("attention_residual.query"), stream)
        mix = latent_attention if config.mla else attention
        mixed = mix(config, layer, own, [norm(config, t, own["attention_norm.weight"]) for t in x])
        write(config, 2 * layer, stream, [post(config, own, "attention_post_norm", y) for y in mixed])
        x = read(config, own.get("ffn_residual.query"), stream)
        feed = experts if config.has_experts(layer) else feed_forward
        fed = [feed(config, own, norm(config, t, own["ffn_norm.weight"])) for t in x]
        write(config, 2 * layer + 1, stream, [post(config, own, "ffn_post_norm", y) for y in fed])
    x = read(config, weights.get("final_residual.query"), stream)
    head = weights["embedding.weight" if config.tied else "head.weight"]
    logits = torch.stack([head @ norm(config, t, weights["final_norm.weight"]) for t in x])
    return capped(logits, config.logit_soft_cap)


def read(config, query, stream: list[list[Tensor]]) -> list[Tensor]:
    """Each token's input: the last entry of the stream, or a mixture of its entries by w . RMSNorm(v)."""
    if query is None:
        return stream[-1]
    mixed = []
    for token in range(len(stream[0])):
        values = [entry[token] for entry in stream]
        share = torch.stack([query @ norm(config, v, torch.ones_like(v)) for v in values]).softmax(0)
        mixed.append(sum(a * v for a, v in zip(share, values, strict=True)))
    return mixed


def write(config, sub_layer: int, stream: list[list[Tensor]], added: list[Tensor]) -> None:
    if config.attention_residuals and sub_layer % config.attention_residuals == 0:
        stream.append(added)
    else:
        stream[-1] = [a + b for a, b in zip(stream[-1], added, strict=True)]


def norm(config, x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.square().mean() + config.norm_eps).sqrt()


def post(config, own, name: str, y: Tensor) -> Tensor:
    return norm(config, y, own[f"{name}.weight"]) if config.post_norm else y


def capped(score: Tensor, cap: float | None) -> Tensor:
    return score if cap is None else cap * torch.tanh(score / cap)


def feed_forward(config, own, x: Tensor) -> Tensor:
    return ffn(config, x, own["up.weight"], own["down.weight"], own.get("gate.weight"))


def ffn(config, x: Tensor, up: Tensor, down: Tensor, gate: Tensor | None) -> Tensor:
    if config.activation == "squared_relu":
        return down @ (up @ x).clamp(min=0) ** 2
    g = gate @ x
    if config.activation == "swiglu":
        return down @ (g / (1 + (-g).exp()) * (up @ x))
    gelu = 0.5 * g * (1 + torch.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3)))
    return down @ (gelu * (up @ x))


def experts(config, own, x: Tensor) -> Tensor:
    moe = config.moe
    logits = own["moe.router.weight"] @ x
    scores = 1 / (1 + (-logits).exp()) if moe.score == "sigmoid" else logits.exp() / logits.exp().sum()
    order = sorted(range(moe.experts), key=lambda e: -(scores[e] + own["moe.bias"][e]).item())[: moe.chosen]
    total = sum(scores[e] for e in order) if moe.normalise else 1.0
    gates = own.get("moe.gate", [None] * moe.experts)
    y = sum(
        moe.route_scale * scores[e] / total * ffn(config, x, own["moe.up"][e], own["moe.down"][e], gates[e])
        for e in order
    )
    for i in range(moe.shared):  # the wide shared expert is `shared` narrow ones added up
        part = slice(i * moe.expert_width, (i + 1) * moe.expert_width)
        gate = own["moe.shared_gate.weight"][part] if config.activation != "squared_relu" else None
        y = y + ffn(config, x, own["moe.shared_up.weight"][part], own["moe.shared_down.weight"][:, part], gate)
    return y


def attention(config, layer: int, own, x: list[Tensor]) -> list[Tensor]:
    shared = [h // (config.heads // config.kv_heads) for h in range(config.heads)]
    heads = []
    for h in range(config.heads):
        q = [turned(config, layer, projected(config, own, "query", h, y), t) for t, y in enumerate(x)]
        k = [turned(config, layer, projected(config, own, "key", shared[h], y), t) for t, y in enumerate(x)]
        v = [projected(config, own, "value", shared[h], y) for y in x]
        heads.append(mixed_head(config, layer, own, h, x, q, k, v))
    return [own["attention.output.weight"] @ torch.cat(parts) for parts in zip(*heads, strict=True)]


def latent_attention(config, layer: int, own, x: list[Tensor]) -> list[Tensor]:
    mla, heads = config.mla, []
    queries, keys, values, rope_keys = [], [], [], []
    for t, y in enumerate(x):
        c = (
            norm(config, own["attention.query_latent.weight"] @ y, own["attention.query_norm.weight"])
            if (mla.query_rank)
            else y
        )
        queries.append((own["attention.query.weight"] @ c).view(config.heads, -1))
        latent = own["attention.kv_latent.weight"] @ y
        rope_keys.append(turned(config, layer, latent[mla.kv_rank :], t))
        kv = own["attention.kv.weight"] @ norm(config, latent[: mla.kv_rank], own["attention.kv_norm.weight"])
        keys.append(kv.view(config.heads, -1)[:, : mla.nope_width])
        values.append(kv.view(config.heads, -1)[:, mla.nope_width :])
    for h in range(config.heads):
        q = [
            torch.cat((q[h, : mla.nope_width], turned(config, layer, q[h, mla.nope_width :], t)))
            for t, q in enumerate(queries)
        ]
        k = [torch.cat((k[h], r)) for k, r in zip(keys, rope_keys, strict=True)]
        heads.append(mixed_head(config, layer, own, h, x, q, k, [v[h] for v in values]))
    return [own["attention.output.weight"] @ torch.cat(parts) for parts in zip(*heads, strict=True)]


def mixed_head(config, layer: int, own, h: int, x, q, k, v) -> list[Tensor]:
    """One head's output for each token: softmax over what it sees, forgetting and gate included."""
    scale = config.attention_scale or len(q[0]) ** -0.5
    mixed = []
    for t in range(len(x)):
        seen = [s for s in range(t + 1) if sees(config, layer, t, s)]
        scores = [
            capped(scale * (q[t] @ k[s]), config.attention_soft_cap) + forgotten(config, own, h, x, s, t) for s in seen
        ]
        share = torch.stack(scores).softmax(0)
        head = sum(a * v[s] for a, s in zip(share, seen, strict=True))
        if config.attention_gate:
            n = len(head) if config.attention_gate == "element" else 1
            head = head / (1 + (-(own["attention.gate.weight"][h * n : (h + 1) * n] @ x[t])).exp())
        mixed.append(head)
    return mixed


def forgotten(config, own, h: int, x: list[Tensor], key: int, query: int):
    """log of the product of the forget gates after the key, up to the query."""
    if not config.forget_gate:
        return 0.0
    weight, bias = own["attention.forget.weight"][h], own["attention.forget.bias"][h]
    gates = [1 / (1 + (-(weight @ x[t] + bias)).exp()) for t in range(key + 1, query + 1)]
    return sum((g.log() for g in gates), start=torch.zeros(()))


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
