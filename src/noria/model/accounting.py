"""What a shape costs: parameters, FLOPs, cache bytes. Exact for `Transformer` (tests/model compare with traces).

D width, H query heads, G key/value heads, d head width, F hidden width, E experts, K chosen, L layers, T tokens.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noria.model.config import ModelConfig


def matmul_parameters(config: ModelConfig) -> int:
    """Weights that take part in a matrix product for each token: the layers (of experts, those visited) and the head.

    Counting these (not the embedding look-up) gave the steadiest compute-optimal ratio at small scale (nanochat).
    """
    fed = sum(ffn_matrices(config, layer, active=True) for layer in range(config.layers))
    return config.layers * attention_matrices(config) + fed + config.vocab_size * config.width


def parameters(config: ModelConfig) -> int:
    """All trained numbers: every expert, norms and biases included. Routers' balancing biases are not trained."""
    fed = sum(ffn_matrices(config, layer, active=False) for layer in range(config.layers))
    tables = (1 if config.tied else 2) * config.vocab_size * config.width
    return config.layers * attention_matrices(config) + fed + tables + vectors(config)


def attention_matrices(config: ModelConfig) -> int:
    """Weights of one layer's attention projections, gates included."""
    width, heads = config.width, config.heads
    if config.mla:
        mla = config.mla
        query = heads * config.head_width
        matrices = width * mla.query_rank + mla.query_rank * query if mla.query_rank else width * query
        matrices += width * (mla.kv_rank + mla.rope_width)
        matrices += mla.kv_rank * heads * (mla.nope_width + mla.value_width) + heads * mla.value_width * width
    else:
        matrices = 2 * width * config.head_width * (heads + config.kv_heads)
    gates = {None: 0, "head": heads, "element": heads * config.value_width}[config.attention_gate]
    return matrices + width * (gates + (heads if config.forget_gate else 0))


def ffn_matrices(config: ModelConfig, layer: int, active: bool) -> int:
    """Weights of a layer's feed-forward: all of them, or only those that one token meets."""
    matrices = 3 if config.gated_ffn else 2
    if not config.has_experts(layer):
        return matrices * config.width * config.ffn_width
    moe = config.moe
    assert moe is not None
    met = moe.shared + (moe.chosen if active else moe.experts)
    return config.width * moe.experts + matrices * config.width * moe.expert_width * met


def vectors(config: ModelConfig) -> int:
    """Trained numbers that are no matrix: norms, biases, the queries of attention residuals."""
    layer = (4 if config.post_norm else 2) * config.width
    layer += 2 * config.head_width if config.qk_norm else 0
    layer += config.head_width * (config.heads + 2 * config.kv_heads) if config.qkv_bias else 0
    layer += config.heads if config.forget_gate else 0
    layer += config.mla.kv_rank + (config.mla.query_rank or 0) if config.mla else 0
    queries = (2 * config.layers + 1) * config.width if config.attention_residuals else 0
    return config.layers * layer + config.width + queries


def visible(length: int, window: int | None) -> float:
    """Keys that a query sees, averaged over a sequence: T/2, or W - W^2/2T where a window W < T limits it."""
    if window is None or window >= length:
        return length / 2
    return window - window * window / (2 * length)


def attention_flops(config: ModelConfig, length: int, skip_masked: bool = True) -> float:
    """Forward FLOPs a token of all layers' q.k and weights.v: 2 H d each for a key that the query sees.

    Without `skip_masked`, over all `length` keys, which is what a kernel without block skipping computes.
    """
    window = config.local.window if config.local else None
    seen = sum(
        visible(length, window if config.is_local(layer) else None) if skip_masked else length
        for layer in range(config.layers)
    )
    return 2.0 * config.heads * (config.head_width + config.value_width) * seen


def stream_entries(config: ModelConfig) -> int:
    """Entries that attention residuals read, over all sub-layers and the end: 1 + ceil(s / block) at the s-th."""
    if config.attention_residuals is None:
        return 0
    return sum(1 + math.ceil(s / config.attention_residuals) for s in range(2 * config.layers + 1))


def flops_per_token(config: ModelConfig, sequence_length: int | None = None, skip_masked: bool = True) -> float:
    """Training FLOPs a token, forward and backward: 6 a matmul weight, and 12*H*d*T/2 a layer for causal attention.

    Backward costs twice the forward; each product is a multiplication and an addition (PaLM, appendix B); the half
    is what a causal mask leaves. Attention residuals: a score and a mixture, 4 D an entry read.
    """
    length = sequence_length or config.context
    forward = 2.0 * matmul_parameters(config) + 4.0 * config.width * stream_entries(config)
    return 3.0 * (forward + attention_flops(config, length, skip_masked))


def cache_bytes_per_token(config: ModelConfig, bytes_per_number: int = 4) -> int:
    """Cache bytes that one token of context costs."""
    return config.layers * sum(heads * width for heads, width in config.cache_states().values()) * bytes_per_number
