"""What a Hugging Face config.json means as a ModelConfig, and the other way round, for the families that fit.

`read_config` refuses every field that would change what the model computes and that our model has no piece for: a model
that is imported computes what `transformers` computes. Fields of training, caching and tokens are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from noria.model.config import LocalAttention, ModelConfig, MoE, RopeScaling

FAMILIES = ("llama", "qwen2", "qwen3", "qwen3_moe", "gemma3_text")
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
ACTIVATIONS = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu"}
# Field -> the only value that our model computes; absent means that value.
FIXED: Mapping[str, Any] = {
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "use_bidirectional_attention": False,
    "partial_rotary_factor": 1.0,
    "decoder_sparse_step": 1,
    "quantization_config": None,
}


class UnsupportedModel(ValueError):
    """A model that can't be imported or exported; the message names each thing that is in the way."""


def read_config(hf: Mapping[str, Any]) -> ModelConfig:
    """The shape behind a config.json of `transformers` 4 or 5. Raises UnsupportedModel with everything it can't do."""
    family = hf.get("model_type")
    if family not in FAMILIES:
        raise UnsupportedModel(f"model_type {family!r} is not supported; there are {', '.join(FAMILIES)}")
    wrong = [f"{name} = {hf[name]!r}" for name, only in FIXED.items() if name in hf and hf[name] not in (only, None)]
    activation = hf.get("hidden_activation" if family == "gemma3_text" else "hidden_act", "silu")
    if activation not in ACTIVATIONS:
        wrong.append(f"activation {activation!r}")
    try:
        global_base, scaling, local = _positions(hf, family)
    except UnsupportedModel as error:
        wrong.append(str(error))
    if wrong:
        raise UnsupportedModel(f"this {family} model has what can't be imported: {'; '.join(wrong)}")
    heads, width = hf["num_attention_heads"], hf["hidden_size"]
    common = {
        "vocab_size": hf["vocab_size"],
        "width": width,
        "layers": hf["num_hidden_layers"],
        "heads": heads,
        "kv_heads": hf.get("num_key_value_heads") or heads,
        "explicit_head_width": hf.get("head_dim") or width // heads,
        "ffn_width": hf["intermediate_size"],
        "context": hf["max_position_embeddings"],
        "rope_base": global_base,
        "rope_scaling": scaling,
        "local": local,
        "norm_eps": hf.get("rms_norm_eps", 1e-6),
        "activation": ACTIVATIONS[activation],
        "tied": hf.get("tie_word_embeddings", family == "gemma3_text"),
        "qk_norm": family in ("qwen3", "qwen3_moe", "gemma3_text"),
        "qkv_bias": family == "qwen2",
    }
    if family == "qwen3_moe":
        common["moe"] = _experts(hf)
    if family == "gemma3_text":
        common |= {
            "post_norm": True,
            "embedding_scale": math.sqrt(width),
            "attention_scale": hf["query_pre_attn_scalar"] ** -0.5,
            "attention_soft_cap": hf.get("attn_logit_softcapping"),
            "logit_soft_cap": hf.get("final_logit_softcapping"),
        }
    return ModelConfig(**common)


def family_of(config: ModelConfig) -> str:
    """The family that can hold a model of ours. Raises UnsupportedModel with what no family has."""
    extra = {
        "squared ReLU (set activation)": config.activation == "squared_relu",
        "MLA": config.mla,
        "gated attention": config.attention_gate,
        "a forget gate": config.forget_gate,
        "attention residuals": config.attention_residuals,
        "layers without positions": config.nope_every,
    }
    found = [name for name, present in extra.items() if present]
    if found:
        raise UnsupportedModel(f"no family of transformers that we write has {', '.join(found)}")
    if config.post_norm and config.qk_norm and config.activation == "geglu" and not config.moe:
        return "gemma3_text"
    plain = config.activation == "swiglu" and not config.post_norm and config.local is None
    plain = plain and config.embedding_scale == 1.0 and config.attention_scale is None
    if not plain or config.attention_soft_cap or config.logit_soft_cap:
        raise UnsupportedModel("no family of transformers that we write has this mix of norms, windows, scales or caps")
    kinds = {(False, False): "llama", (False, True): "qwen2", (True, False): "qwen3"}
    family = kinds.get((config.qk_norm, config.qkv_bias))
    if config.moe:
        family = "qwen3_moe" if family == "qwen3" else None
        if config.moe.score != "softmax" or config.moe.shared or config.moe.route_scale != 1.0:
            raise UnsupportedModel("Qwen3-MoE has softmax routing without shared experts or a route scale")
    if family is None:
        raise UnsupportedModel("no family of transformers that we write has this mix of QK-norm, biases and experts")
    return family


def write_config(config: ModelConfig, dtype: str, tokens: Mapping[str, Any]) -> dict[str, Any]:
    """config.json for `transformers` 4 and 5, vLLM and others; `tokens` has bos, eos and pad ids where known."""
    family = family_of(config)
    hf: dict[str, Any] = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "dtype": dtype,
        "torch_dtype": dtype,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "rope_scaling": _write_scaling(config.rope_scaling),
        "tie_word_embeddings": config.tied,
        "attention_bias": False,
        "hidden_act": "silu",
        **tokens,
    }
    if config.moe:
        hf |= {
            "num_experts": config.moe.experts,
            "num_experts_per_tok": config.moe.chosen,
            "moe_intermediate_size": config.moe.expert_width,
            "norm_topk_prob": config.moe.normalise,
            "mlp_only_layers": list(range(config.moe.first_dense)),
            "decoder_sparse_step": 1,
        }
    if family == "gemma3_text":
        hf |= _write_gemma(config)
    return hf


def _write_gemma(config: ModelConfig) -> dict[str, Any]:
    if not math.isclose(config.embedding_scale, math.sqrt(config.width), rel_tol=1e-6):
        raise UnsupportedModel(f"Gemma scales the embedding by sqrt(width); this model by {config.embedding_scale}")
    scalar = round((config.attention_scale or config.head_width**-0.5) ** -2)
    if not math.isclose(scalar**-0.5, config.attention_scale or config.head_width**-0.5, rel_tol=1e-6):
        raise UnsupportedModel(f"Gemma's attention_scale is 1 / sqrt(a whole number), not {config.attention_scale}")
    local = config.local
    kinds = ("full_attention", "sliding_attention")
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "attn_logit_softcapping": config.attention_soft_cap,
        "final_logit_softcapping": config.logit_soft_cap,
        "layer_types": [kinds[config.is_local(layer)] for layer in range(config.layers)],
        "sliding_window": local.window if local else config.context,
        "rope_local_base_freq": (local.rope_base if local else None) or config.rope_base,
    }


def _experts(hf: Mapping[str, Any]) -> MoE:
    dense = hf.get("mlp_only_layers") or []
    if sorted(dense) != list(range(len(dense))):
        raise UnsupportedModel(f"dense layers {dense} between layers of experts; only the lowest layers can be dense")
    return MoE(
        experts=hf.get("num_experts") or hf["num_local_experts"],
        chosen=hf["num_experts_per_tok"],
        expert_width=hf["moe_intermediate_size"],
        score="softmax",
        normalise=hf.get("norm_topk_prob", False),
        first_dense=len(dense),
    )


def _positions(hf: Mapping[str, Any], family: str) -> tuple[float, RopeScaling | None, LocalAttention | None]:
    """(base, scaling, local layers); `transformers` 5 keeps rotary numbers in rope_parameters, 4 in separate fields."""
    newer = hf.get("rope_parameters") or {}
    context = hf["max_position_embeddings"]
    if family != "gemma3_text":
        given = newer or {**(hf.get("rope_scaling") or {}), "rope_theta": hf.get("rope_theta", 10_000.0)}
        return given.get("rope_theta", 10_000.0), _read_scaling(given, context), None
    full = newer.get("full_attention") or {**(hf.get("rope_scaling") or {}), "rope_theta": hf.get("rope_theta", 1e6)}
    sliding = newer.get("sliding_attention") or {"rope_theta": hf.get("rope_local_base_freq", 10_000.0)}
    if _read_scaling(sliding, context):
        raise UnsupportedModel("scaled rotary positions in sliding-window layers")
    every = _global_every(hf)
    if every == 1:
        return full["rope_theta"], _read_scaling(full, context), None
    local = LocalAttention(window=hf["sliding_window"], global_every=every, rope_base=sliding["rope_theta"])
    return full["rope_theta"], _read_scaling(full, context), local


def _global_every(hf: Mapping[str, Any]) -> int:
    """n where exactly each n-th layer sees all; 0 where none does."""
    layers = hf["num_hidden_layers"]
    pattern = hf.get("sliding_window_pattern") or hf.get("_sliding_window_pattern") or 6
    kinds = hf.get("layer_types") or [
        "full_attention" if (layer + 1) % pattern == 0 else "sliding_attention" for layer in range(layers)
    ]
    full = [layer + 1 for layer, kind in enumerate(kinds) if kind == "full_attention"]
    every = full[0] if full else 0
    if full != (list(range(every, layers + 1, every)) if every else []):
        raise UnsupportedModel(f"full attention in layers {full}; only each n-th layer can have it")
    return every


def _read_scaling(given: Mapping[str, Any], context: int) -> RopeScaling | None:
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind == "default":
        return None
    odd = {"mscale", "mscale_all_dim", "short_factor", "long_factor"} & given.keys()
    if given.get("truncate") is False:
        odd.add("truncate = false")
    if kind not in ("linear", "yarn", "llama3") or odd:
        raise UnsupportedModel(f"rotary scaling {kind!r}" + (f" with {', '.join(sorted(odd))}" if odd else ""))
    if kind == "linear":
        return RopeScaling(kind="linear", factor=given["factor"])
    original = given.get("original_max_position_embeddings") or context
    if kind == "yarn":
        return RopeScaling(
            kind="yarn",
            factor=given["factor"],
            original_context=original,
            beta_fast=given.get("beta_fast") or 32.0,
            beta_slow=given.get("beta_slow") or 1.0,
            attention_factor=given.get("attention_factor"),
        )
    return RopeScaling(
        kind="llama3",
        factor=given["factor"],
        original_context=original,
        low_frequency_factor=given["low_freq_factor"],
        high_frequency_factor=given["high_freq_factor"],
    )


def _write_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    written: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "linear":
        return written
    written["original_max_position_embeddings"] = scaling.original_context
    if scaling.kind == "yarn":
        written |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
        return written | ({"attention_factor": scaling.attention_factor} if scaling.attention_factor else {})
    return written | {
        "low_freq_factor": scaling.low_frequency_factor,
        "high_freq_factor": scaling.high_frequency_factor,
    }
