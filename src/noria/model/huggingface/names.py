"""Which tensor of a Hugging Face model, and of a GGUF file, is which of ours.

A name of ours may stand for several of theirs: the matrices of all experts are one tensor (E, ...) here.
"""

from __future__ import annotations

from collections.abc import Iterator

from noria.model.config import ModelConfig

HEAD = "head.weight"
# Ours -> (Hugging Face, GGUF). "{n}" is the layer, "{e}" the expert.
TOP = {
    "embedding.weight": ("model.embed_tokens.weight", "token_embd.weight"),
    "final_norm.weight": ("model.norm.weight", "output_norm.weight"),
    HEAD: ("lm_head.weight", "output.weight"),
}
ATTENTION = {
    "attention.query.weight": ("self_attn.q_proj.weight", "attn_q.weight"),
    "attention.key.weight": ("self_attn.k_proj.weight", "attn_k.weight"),
    "attention.value.weight": ("self_attn.v_proj.weight", "attn_v.weight"),
    "attention.output.weight": ("self_attn.o_proj.weight", "attn_output.weight"),
}
BIASES = {
    "attention.query.bias": ("self_attn.q_proj.bias", "attn_q.bias"),
    "attention.key.bias": ("self_attn.k_proj.bias", "attn_k.bias"),
    "attention.value.bias": ("self_attn.v_proj.bias", "attn_v.bias"),
}
QK_NORMS = {
    "attention.query_norm.weight": ("self_attn.q_norm.weight", "attn_q_norm.weight"),
    "attention.key_norm.weight": ("self_attn.k_norm.weight", "attn_k_norm.weight"),
}
NORMS = {
    "attention_norm.weight": ("input_layernorm.weight", "attn_norm.weight"),
    "ffn_norm.weight": ("post_attention_layernorm.weight", "ffn_norm.weight"),
}
SANDWICH = {
    "attention_norm.weight": ("input_layernorm.weight", "attn_norm.weight"),
    "attention_post_norm.weight": ("post_attention_layernorm.weight", "post_attention_norm.weight"),
    "ffn_norm.weight": ("pre_feedforward_layernorm.weight", "ffn_norm.weight"),
    "ffn_post_norm.weight": ("post_feedforward_layernorm.weight", "post_ffw_norm.weight"),
}
DENSE = {
    "gate.weight": ("mlp.gate_proj.weight", "ffn_gate.weight"),
    "up.weight": ("mlp.up_proj.weight", "ffn_up.weight"),
    "down.weight": ("mlp.down_proj.weight", "ffn_down.weight"),
}
EXPERTS = {
    "moe.router.weight": ("mlp.gate.weight", "ffn_gate_inp.weight"),
    "moe.gate": ("mlp.experts.{e}.gate_proj.weight", "ffn_gate_exps.weight"),
    "moe.up": ("mlp.experts.{e}.up_proj.weight", "ffn_up_exps.weight"),
    "moe.down": ("mlp.experts.{e}.down_proj.weight", "ffn_down_exps.weight"),
}


def tensor_names(config: ModelConfig) -> Iterator[tuple[str, list[str], str]]:
    """(ours, theirs at Hugging Face, theirs in GGUF) of every stored tensor; several of theirs are to be stacked."""
    for ours, (hugging, gguf) in TOP.items():
        if not (config.tied and ours == HEAD):
            yield ours, [hugging], gguf
    parts = ATTENTION | (SANDWICH if config.post_norm else NORMS)
    parts |= BIASES if config.qkv_bias else {}
    parts |= QK_NORMS if config.qk_norm else {}
    for layer in range(config.layers):
        experts = config.moe.experts if config.moe and config.has_experts(layer) else 0
        for ours, (hugging, gguf) in (parts | (EXPERTS if experts else DENSE)).items():
            whole = f"model.layers.{layer}.{hugging}"
            several = [whole.replace("{e}", str(e)) for e in range(experts)] if "{e}" in hugging else [whole]
            yield f"blocks.{layer}.{ours}", several, f"blk.{layer}.{gguf}"


def is_norm(ours: str) -> bool:
    return ours.endswith("norm.weight")
