"""The shape of a decoder-only transformer, and what it costs: parameters, FLOPs, cache bytes."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ModelConfig(BaseModel):
    """Everything that fixes the weights' shapes. Counts are exact for `Transformer` (tests/model compare)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vocab_size: int = Field(gt=0, description="tokens")
    width: int = Field(gt=0, description="D, the residual stream")
    layers: int = Field(gt=0)
    heads: int = Field(gt=0, description="query heads")
    kv_heads: int = Field(gt=0, description="key/value heads shared by groups of query heads (GQA, arXiv 2305.13245)")
    ffn_width: int = Field(gt=0, description="hidden width of the squared-ReLU feed-forward")
    context: int = Field(gt=0, description="the longest sequence, in tokens")
    rope_base: float = Field(default=10_000.0, gt=0)
    qk_norm: bool = Field(default=True, description="RMSNorm of queries and keys (arXiv 2302.05442)")
    tied: bool = Field(default=True, description="one matrix serves as embedding and output head")

    @model_validator(mode="after")
    def _check_divisions(self) -> Self:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} must be an even multiple of heads {self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        return self

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def matmul_parameters(self) -> int:
        """Weights that take part in a matrix product for each token: the layers and the output head.

        Counting these (not the embedding look-up) gave the steadiest compute-optimal ratio at small scale (nanochat).
        """
        kv_width = self.kv_heads * self.head_width
        layer = 2 * self.width * self.width + 2 * self.width * kv_width + 2 * self.width * self.ffn_width
        return self.layers * layer + self.vocab_size * self.width

    def parameters(self) -> int:
        """All trained numbers, norms included."""
        embedding = 0 if self.tied else self.vocab_size * self.width
        norms = (2 * self.layers + 1) * self.width + (2 * self.layers * self.head_width if self.qk_norm else 0)
        return self.matmul_parameters() + embedding + norms

    def flops_per_token(self, sequence_length: int | None = None) -> float:
        """Training FLOPs a token, forward and backward: 6 a matmul weight, and 12*L*D*T/2 for causal attention.

        Backward costs twice the forward; each product is a multiplication and an addition (PaLM, appendix B); the half
        is what a causal mask leaves.
        """
        length = sequence_length or self.context
        return 6.0 * self.matmul_parameters() + 6.0 * self.layers * self.width * length

    def cache_bytes_per_token(self, bytes_per_number: int = 4) -> int:
        """Key/value cache bytes that one token of context costs."""
        return 2 * self.layers * self.kv_heads * self.head_width * bytes_per_number
