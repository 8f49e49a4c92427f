"""The shape of a decoder-only transformer: which pieces it is made of and how wide they are.

Every option is off by default. What a shape costs (parameters, FLOPs, bytes) is in `model/accounting.py`.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from noria.model import accounting

Activation = Literal["squared_relu", "swiglu", "geglu"]


class Part(BaseModel):
    """The numbers of one option."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RopeScaling(Part):
    """Rotary frequencies for a context longer than the one trained on (formulas in `model/rope.py`)."""

    kind: Literal["linear", "yarn", "llama3"]
    factor: float = Field(ge=1, description="how many times longer the context becomes")
    original_context: int | None = Field(default=None, gt=0, description="tokens; yarn and llama3 need it")
    beta_fast: float = Field(default=32.0, gt=0, description="yarn: turns in the old context above which none changes")
    beta_slow: float = Field(default=1.0, gt=0, description="yarn: turns below which a frequency is divided in full")
    attention_factor: float | None = Field(
        default=None, gt=0, description="yarn: multiplies cosine and sine; None is 0.1 ln(factor) + 1"
    )
    low_frequency_factor: float = Field(default=1.0, gt=0, description="llama3")
    high_frequency_factor: float = Field(default=4.0, gt=0, description="llama3")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind != "linear" and self.original_context is None:
            raise ValueError(f"rope_scaling of kind {self.kind!r} needs original_context, the context trained on")
        if self.beta_slow >= self.beta_fast or self.low_frequency_factor >= self.high_frequency_factor:
            raise ValueError(
                "rope_scaling needs beta_slow < beta_fast and low_frequency_factor < high_frequency_factor"
            )
        return self


class LocalAttention(Part):
    """Sliding-window layers between global ones (Mistral, arXiv 2310.06825; in a pattern: Gemma 2 and 3)."""

    window: int = Field(gt=0, description="a token sees itself and window - 1 before it")
    global_every: int = Field(default=0, ge=0, description="each n-th layer sees all; 0: every layer is local")
    rope_base: float | None = Field(
        default=None, gt=0, description="of the local layers, then without rope_scaling; None: as the global layers"
    )


class MLA(Part):
    """Multi-head latent attention: keys and values from one small latent (DeepSeek-V2, arXiv 2405.04434, 2.1)."""

    kv_rank: int = Field(gt=0, description="R, the latent that is cached in place of keys and values")
    query_rank: int | None = Field(default=None, gt=0, description="of the queries' latent; None: one full matrix")
    nope_width: int = Field(gt=0, description="of a head's query and key, the part without position")
    rope_width: int = Field(gt=0, description="r, the rotated part; one key of this width serves all heads")
    value_width: int = Field(gt=0, description="of a head's value")


class MoE(Part):
    """Routed experts in place of the feed-forward (DeepSeek-V3, arXiv 2412.19437, section 2.1.2; `model/moe.py`)."""

    experts: int = Field(gt=1, description="E, routed")
    chosen: int = Field(gt=0, description="K, routed experts that each token visits")
    expert_width: int = Field(gt=0, description="hidden width of one expert")
    shared: int = Field(default=0, ge=0, description="experts that every token visits, computed as one wide one")
    score: Literal["sigmoid", "softmax"] = Field(default="sigmoid", description="softmax over all experts: Qwen3")
    normalise: bool = Field(default=True, description="the chosen weights are divided by their sum")
    route_scale: float = Field(default=1.0, gt=0, description="multiplies the routed weights (DeepSeek-V3: 2.5)")
    first_dense: int = Field(default=0, ge=0, description="layers at the bottom that stay dense, ffn_width wide")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.chosen > self.experts:
            raise ValueError(f"moe.chosen {self.chosen} must not exceed moe.experts {self.experts}")
        return self


class ModelConfig(Part):
    """Everything that fixes the weights' shapes and the function that they compute."""

    vocab_size: int = Field(gt=0, description="tokens")
    width: int = Field(gt=0, description="D, the residual stream")
    layers: int = Field(gt=0)
    heads: int = Field(gt=0, description="query heads")
    kv_heads: int = Field(gt=0, description="key/value heads shared by groups of query heads (GQA, arXiv 2305.13245)")
    ffn_width: int = Field(gt=0, description="hidden width of the dense feed-forward")
    context: int = Field(gt=0, description="the longest sequence, in tokens")
    rope_base: float = Field(default=10_000.0, gt=0)
    qk_norm: bool = Field(default=True, description="RMSNorm of queries and keys (arXiv 2302.05442)")
    tied: bool = Field(default=True, description="one matrix serves as embedding and output head")

    explicit_head_width: int | None = Field(default=None, gt=0, description="d, where it is not width / heads")
    norm_eps: float = Field(default=1e-6, gt=0)
    activation: Activation = Field(
        default="squared_relu", description="of the feed-forward; swiglu and geglu (tanh) have a third matrix, the gate"
    )
    qkv_bias: bool = Field(default=False, description="added to queries, keys and values (Qwen2)")
    post_norm: bool = Field(default=False, description="RMSNorm of what each sub-layer adds, too (Gemma's sandwich)")
    embedding_scale: float = Field(default=1.0, gt=0, description="multiplies the embedding (Gemma: sqrt(width))")
    attention_scale: float | None = Field(default=None, gt=0, description="of q.k; None is 1 / sqrt(d)")
    attention_soft_cap: float | None = Field(default=None, gt=0, description="c tanh(score / c) (Gemma 2)")
    logit_soft_cap: float | None = Field(default=None, gt=0, description="c tanh(logit / c) (Gemma 2)")
    rope_scaling: RopeScaling | None = None
    nope_every: int = Field(
        default=0, ge=0, description="each n-th layer has no rotation (arXiv 2501.18795; SmolLM3: 4); 1: none at all"
    )
    local: LocalAttention | None = None
    mla: MLA | None = None
    attention_gate: Literal["head", "element"] | None = Field(
        default=None, description="sigmoid gate on each head's output, a number a head or an element (arXiv 2505.06708)"
    )
    forget_gate: bool = Field(default=False, description="Forgetting attention (arXiv 2503.02130)")
    moe: MoE | None = None
    attention_residuals: int | None = Field(
        default=None,
        gt=0,
        description="Attention Residuals (arXiv 2603.15031): sub-layers a block, two a layer; 1: full; None: plain sum",
    )

    @model_validator(mode="after")
    def _check_divisions(self) -> Self:
        plain = self.explicit_head_width is None and self.mla is None
        if plain and (self.width % self.heads or (self.width // self.heads) % 2):
            raise ValueError(f"width {self.width} must be an even multiple of heads {self.heads}")
        if self.rotary_width % 2:
            name = "mla.rope_width" if self.mla else "explicit_head_width"
            raise ValueError(f"{name} {self.rotary_width} must be even: rotation turns pairs")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        return self

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        wrong = {
            "nope_every = 1 leaves no layer that rotates: remove rope_scaling": self.rope_scaling
            and self.nope_every == 1,
            "a cap on scores and a forget gate have no common formula: remove attention_soft_cap or forget_gate": (
                self.forget_gate and self.attention_soft_cap
            ),
            "every layer is dense: lower moe.first_dense below layers, or remove moe": (
                self.moe and self.moe.first_dense >= self.layers
            ),
            "one block of attention residuals is the plain sum: lower attention_residuals below 2 * layers": (
                self.attention_residuals and self.attention_residuals >= 2 * self.layers
            ),
            "MLA has no shared key/value heads: set kv_heads equal to heads": self.mla and self.kv_heads != self.heads,
            "MLA normalises its latents instead of queries and keys: set qk_norm = false": self.mla and self.qk_norm,
            "MLA has widths of its own: remove explicit_head_width": self.mla and self.explicit_head_width,
            "MLA has no biases: set qkv_bias = false": self.mla and self.qkv_bias,
            "MLA keeps its position in a part of its own: set nope_every = 0": self.mla and self.nope_every,
        }
        found = [message for message, is_wrong in wrong.items() if is_wrong]
        if found:
            raise ValueError("; ".join(found))
        return self

    # -- the pieces of each layer --

    @property
    def head_width(self) -> int:
        """d, of a query and a key."""
        if self.mla:
            return self.mla.nope_width + self.mla.rope_width
        return self.explicit_head_width or self.width // self.heads

    @property
    def value_width(self) -> int:
        """Of a head's value."""
        return self.mla.value_width if self.mla else self.head_width

    @property
    def rotary_width(self) -> int:
        """The part of a head that positions rotate."""
        return self.mla.rope_width if self.mla else self.head_width

    @property
    def gated_ffn(self) -> bool:
        return self.activation != "squared_relu"

    def is_local(self, layer: int) -> bool:
        """Whether the layer (from 0) sees only its window."""
        if self.local is None:
            return False
        return not (self.local.global_every and (layer + 1) % self.local.global_every == 0)

    def is_rotated(self, layer: int) -> bool:
        return not (self.nope_every and (layer + 1) % self.nope_every == 0)

    def has_experts(self, layer: int) -> bool:
        return self.moe is not None and layer >= self.moe.first_dense

    def cache_states(self) -> dict[str, tuple[int, int]]:
        """What a layer keeps of each past token, name -> (heads, width); stored as (rows, heads, tokens, width)."""
        if self.mla:
            states = {"latent": (1, self.mla.kv_rank), "rope_key": (1, self.mla.rope_width)}
        else:
            states = {"key": (self.kv_heads, self.head_width), "value": (self.kv_heads, self.head_width)}
        return states | ({"log_forget": (self.heads, 1)} if self.forget_gate else {})

    # -- what it costs --

    def matmul_parameters(self) -> int:
        return accounting.matmul_parameters(self)

    def parameters(self) -> int:
        return accounting.parameters(self)

    def flops_per_token(self, sequence_length: int | None = None) -> float:
        return accounting.flops_per_token(self, sequence_length)

    def cache_bytes_per_token(self, bytes_per_number: int = 4) -> int:
        return accounting.cache_bytes_per_token(self, bytes_per_number)
