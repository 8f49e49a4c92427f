"""What a shape costs: parameters, FLOPs, cache bytes. Exact for `Transformer` (tests/model compare with traces).

D width, H query heads, G key/value heads, d head width, F hidden width, T tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noria.model.config import ModelConfig


def matmul_parameters(config: ModelConfig) -> int:
    """Weights that take part in a matrix product for each token: the layers and the output head.

    Counting these (not the embedding look-up) gave the steadiest compute-optimal ratio at small scale (nanochat).
    """
    layer = attention_matrices(config) + ffn_matrices(config, config.ffn_width)
    return config.layers * layer + config.vocab_size * config.width


def attention_matrices(config: ModelConfig) -> int:
    """Weights of one layer's attention projections."""
    return 2 * config.width * config.head_width * (config.heads + config.kv_heads)


def ffn_matrices(config: ModelConfig, hidden: int) -> int:
    return (3 if config.gated_ffn else 2) * config.width * hidden


def vectors(config: ModelConfig) -> int:
    """Trained numbers that no matrix product multiplies: norms and biases."""
    norms = (4 if config.post_norm else 2) * config.width
    qk_norms = 2 * config.head_width if config.qk_norm else 0
    biases = config.head_width * (config.heads + 2 * config.kv_heads) if config.qkv_bias else 0
    return config.layers * (norms + qk_norms + biases) + config.width


def parameters(config: ModelConfig) -> int:
    """All trained numbers, norms included."""
    embedding = 0 if config.tied else config.vocab_size * config.width
    return matmul_parameters(config) + embedding + vectors(config)


def visible(length: int, window: int | None) -> float:
    """Keys that a query sees, averaged over a sequence: T/2, or W - W^2/2T where a window W < T limits it."""
    if window is None or window >= length:
        return length / 2
    return window - window * window / (2 * length)


def attention_flops(config: ModelConfig, length: int, skip_masked: bool = True) -> float:
    """Forward FLOPs a token of all layers' q.k and weights.v: 2 H d each for a key that the query sees.

    Without `skip_masked`, over all `length` keys, which is what a kernel without block skipping computes.
    """
    seen = sum(
        visible(length, config.local.window if config.local and config.is_local(layer) else None)
        if skip_masked
        else length
        for layer in range(config.layers)
    )
    return 2.0 * config.heads * 2 * config.head_width * seen


def flops_per_token(config: ModelConfig, sequence_length: int | None = None, skip_masked: bool = True) -> float:
    """Training FLOPs a token, forward and backward: 6 a matmul weight, and 12*H*d*T/2 a layer for causal attention.

    Backward costs twice the forward; each product is a multiplication and an addition (PaLM, appendix B); the half
    is what a causal mask leaves.
    """
    length = sequence_length or config.context
    return 6.0 * matmul_parameters(config) + 3.0 * attention_flops(config, length, skip_masked)


def cache_bytes_per_token(config: ModelConfig, bytes_per_number: int = 4) -> int:
    """Cache bytes that one token of context costs."""
    return config.layers * sum(heads * width for heads, width in config.cache_states().values()) * bytes_per_number
