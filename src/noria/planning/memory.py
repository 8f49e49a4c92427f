"""Bytes that a training run and a served model hold: weights, gradients, optimiser state, activations, cache."""

from __future__ import annotations

from dataclasses import dataclass

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
    model: ModelConfig, rows: int, sequence_length: int | None = None, bytes_per_number: int = FP32
) -> TrainingMemory:
    """What one process holds for micro-batches of `rows` sequences, without activation checkpointing or sharding.

    Optimiser: Muon keeps one moment for each matrix of the layers, AdamW two for the embedding, the head and the norms.
    Activations that a layer keeps for its backward, in numbers a token: the two norms' inputs and outputs (4D), query,
    key, value before and after norm and rotation (3 (D + 2K)), attention's output (D) and per-head sums (H), the
    feed-forward's three hidden states (3F). The causal mask of packed documents adds a byte a pair. The loss keeps the
    logits and their log-probabilities.
    """
    length = sequence_length or model.context
    tokens = rows * length
    kv_width = model.kv_heads * model.head_width
    parameters = model.parameters()
    layer_matrices = model.matmul_parameters() - model.vocab_size * model.width
    layer_numbers = 5 * model.width + 3 * (model.width + 2 * kv_width) + model.heads + 3 * model.ffn_width
    activations = tokens * (model.layers * layer_numbers + 3 * model.width) * bytes_per_number + tokens * length
    return TrainingMemory(
        weights=parameters * FP32,
        gradients=parameters * FP32,
        optimiser=(layer_matrices + 2 * (parameters - layer_matrices)) * FP32,
        activations=activations,
        logits=2 * tokens * model.vocab_size * FP32,
    )


def serving_bytes(model: ModelConfig, rows: int, bytes_per_weight: float = FP32, bytes_per_cached: int = FP32) -> int:
    """Weights and a full key/value cache for `rows` conversations at once."""
    return int(model.parameters() * bytes_per_weight) + rows * model.context * model.cache_bytes_per_token(
        bytes_per_cached
    )
