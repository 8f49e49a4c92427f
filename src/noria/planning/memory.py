"""Bytes that a training run and a served model hold: weights, gradients, optimiser state, activations, cache.

D width, H query heads, G key/value heads, d head width, F hidden width, K experts chosen, T tokens of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

from noria.model import accounting
from noria.model.config import ModelConfig

FP32 = 4


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes at the peak of a step, at the end of its forward pass."""

    weights: int
    gradients: int
    optimiser: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimiser + self.activations + self.logits


def training_bytes(
    model: ModelConfig,
    rows: int,
    sequence_length: int | None = None,
    bytes_per_number: int = FP32,
    bytes_per_weight: int = FP32,
    muon: bool = True,
) -> TrainingMemory:
    """What one process holds for micro-batches of `rows` packed sequences, without checkpointing, compiling, sharding.

    Optimiser: Muon keeps one moment for each matrix of the layers, experts included, AdamW two for the embedding, the
    head and the norms; without `muon` two for all. `bytes_per_weight` is of matrices, their gradients and moments
    (`LoopConfig.weight_precision`); vectors keep 4. The loss holds the logits and their log-probabilities, and under a
    cap the tanh of the logits.
    """
    length = sequence_length or model.context
    tokens = rows * length
    parameters = model.parameters()
    tables = (1 if model.tied else 2) * model.vocab_size * model.width
    vectors = accounting.vectors(model)
    matrices = parameters - vectors
    moments = matrices + tables if muon else 2 * matrices
    return TrainingMemory(
        weights=matrices * bytes_per_weight + vectors * FP32,
        gradients=matrices * bytes_per_weight + vectors * FP32,
        optimiser=moments * bytes_per_weight + 2 * vectors * FP32,
        activations=int(tokens * activation_numbers(model, length) * bytes_per_number),
        logits=(2 if model.logit_soft_cap is None else 3) * tokens * model.vocab_size * FP32,
    )


def activation_numbers(model: ModelConfig, length: int) -> float:
    """Numbers a token that the forward pass keeps for the backward, as PyTorch runs it in fp32 without compiling.

    Each operation keeps what its gradient needs; a tensor that several need counts once. Exact for every option
    (tests/planning/test_memory.py sums the saved tensors). Under autocast, half of it is a lower bound: norms and
    softmax stay in fp32, and weights that were cast are kept too.
    """
    layers = sum(_attention(model, layer, length) + _feed_forward(model, layer) for layer in range(model.layers))
    # Each norm with its output, which projections keep; after a sub-layer, its output is only added.
    norms = (2 * model.layers + 1) * (_norm(model.width) + model.width)
    if model.post_norm:
        norms += 2 * model.layers * _norm(model.width)
    # An entry of the stream is stacked; its inverse root mean square, score and share are three numbers.
    reads = accounting.stream_entries(model) * (model.width + 3)
    return layers + norms + reads + _once(model)


def _norm(width: int) -> int:
    """RMSNorm keeps its input, the normalised input and one inverse root mean square."""
    return 2 * width + 1


def _once(model: ModelConfig) -> float:
    """Token ids (8 bytes: two numbers), and the cosines and sines that rotate some layer."""
    rotating = [layer for layer in range(model.layers) if model.is_rotated(layer)]
    kinds = {bool(model.local and model.local.rope_base and model.is_local(layer)) for layer in rotating}
    return 2 + len(kinds) * model.rotary_width


def _attention(model: ModelConfig, layer: int, length: int) -> float:
    """Between the norm before it and the sum after it."""
    heads, own, mixed = model.heads, model.heads * model.head_width, model.heads * model.value_width
    shared = model.kv_heads * model.head_width
    kept = 0.0
    if model.qk_norm:
        kept += 2 * (own + shared) + heads + model.kv_heads
    if model.mla:
        kept += _norm(model.mla.query_rank) + model.mla.query_rank if model.mla.query_rank else 0
        kept += 3 * model.mla.kv_rank + model.mla.rope_width + 1
    fused = not model.forget_gate and model.attention_soft_cap is None and model.head_width == model.value_width
    if fused:
        # q, k, v; log-sums; the mask in fp32; the output as the kernel has it and as the projection wants it. These two
        # are one tensor for a single head, and where q comes straight from its projection: the output is laid out as q.
        straight = not model.is_rotated(layer) and not model.qk_norm
        copies = 1 if (heads == 1 or straight) and not model.attention_gate else 2
        kept += own + 2 * shared + copies * mixed + heads + length
    else:  # scaled q, and k and v spread over the query heads; the output; the shares, and under a cap tanh too
        kept += 2 * own + 2 * mixed + heads * length * (1 if model.attention_soft_cap is None else 2)
    if model.mla and (fused or heads == 1):
        kept += heads * model.mla.nope_width  # v is a view of one product with k, which stays whole
    if model.forget_gate or model.attention_soft_cap is not None:
        kept += length / 4  # the inverted mask, a byte a pair
    if model.forget_gate:
        kept += 2 * heads
    if model.attention_gate:
        kept += (heads if model.attention_gate == "head" else mixed) + (0 if fused else mixed)
    return kept


def _feed_forward(model: ModelConfig, layer: int) -> float:
    if not model.has_experts(layer):
        return _hidden(model, model.ffn_width)
    moe = model.moe
    assert moe is not None
    # Scores; experts chosen, order and its inverse (8 bytes an index); weights, before and after they are normalised.
    routing = moe.experts + 6 * moe.chosen + moe.chosen + (moe.chosen + 1 if moe.normalise else 0)
    visits = moe.chosen * (2 * model.width + _hidden(model, moe.expert_width))
    return routing + visits + _hidden(model, moe.shared * moe.expert_width)


def _hidden(model: ModelConfig, width: int) -> int:
    """ReLU and its square; or gate, activated gate, up and their product."""
    return (4 if model.gated_ffn else 2) * width


def serving_bytes(model: ModelConfig, rows: int, bytes_per_weight: float = FP32, bytes_per_cached: int = FP32) -> int:
    """Weights and a full key/value cache for `rows` conversations at once."""
    return int(model.parameters() * bytes_per_weight) + rows * model.context * model.cache_bytes_per_token(
        bytes_per_cached
    )
