"""A model folder becomes a GGUF file that llama.cpp loads. The format is written by the `gguf` package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from noria.model.config import ModelConfig
from noria.model.folder import load_model
from noria.model.huggingface.export import read_token_ids
from noria.model.huggingface.families import UnsupportedModel, family_of
from noria.model.huggingface.gguf_import import ARCHITECTURES, CONTROL, SPLITS, USER_DEFINED
from noria.model.huggingface.names import tensor_names

NORMAL = 1
Precision = Literal["F32", "F16", "BF16", "Q8_0"]


def export_gguf(source: Path, file: Path, precision: Precision = "F16") -> None:
    """Write the model in `source`. Norms and biases stay in fp32; Q8_0 has blocks of 32 int8 numbers with one scale.

    Raises UnsupportedModel, before writing, where the model or its tokenizer has no place in the format.
    """
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    model = load_model(source)
    config = model.config
    architecture = {hugging: name for name, hugging in ARCHITECTURES.items()}[family_of(config)]
    if config.rope_scaling and config.rope_scaling.kind != "linear":
        raise UnsupportedModel(f"rotary scaling {config.rope_scaling.kind!r} is not written to GGUF")
    vocabulary = _vocabulary(source, config.vocab_size)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.new")
    writer = GGUFWriter(unfinished, architecture)
    _write_shape(writer, architecture, config)
    _write_tokenizer(writer, source, vocabulary)
    state = model.state_dict()
    small = GGMLQuantizationType.F32
    for ours, _, theirs in tensor_names(config):
        tensor = _pairs(ours, state[ours].float(), config) if architecture == "llama" else state[ours].float()
        wanted = small if tensor.ndim == 1 or "router" in ours else GGMLQuantizationType[precision]
        if wanted == GGMLQuantizationType.Q8_0 and tensor.shape[-1] % 32:
            wanted = GGMLQuantizationType.F16  # no whole blocks
        writer.add_tensor(theirs, quantize(tensor.numpy(), wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.replace(file)


def _pairs(ours: str, weight: Tensor, config: ModelConfig) -> Tensor:
    """Undoes `gguf_import.halves_from_pairs` for queries and keys."""
    if not ours.endswith(("attention.query.weight", "attention.key.weight")):
        return weight
    heads = config.heads if "query" in ours else config.kv_heads
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape).contiguous()


def _write_shape(writer: Any, architecture: str, config: ModelConfig) -> None:
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.ffn_width)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_width)
    writer.add_value_length(config.head_width)
    writer.add_rope_dimension_count(config.head_width)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if config.rope_scaling:
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scaling.factor)
    if config.moe:
        if config.moe.first_dense or not config.moe.normalise:
            raise UnsupportedModel("llama.cpp's qwen3moe has experts in every layer and weights that sum to 1")
        writer.add_expert_count(config.moe.experts)
        writer.add_expert_used_count(config.moe.chosen)
        writer.add_expert_feed_forward_length(config.moe.expert_width)
    if architecture == "gemma3":
        if config.local is None or config.local.global_every != 6:
            raise UnsupportedModel("llama.cpp's gemma3 has a global layer after each five local ones")
        writer.add_sliding_window(config.local.window)
        if config.logit_soft_cap:
            writer.add_final_logit_softcapping(config.logit_soft_cap)


def _vocabulary(source: Path, size: int) -> dict[str, Any]:
    """Tokens, types, merges and the name of the split of a byte-level BPE."""
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    if tokenizer["model"]["type"] != "BPE" or tokenizer["model"].get("byte_fallback"):
        raise UnsupportedModel("only byte-level BPE tokenizers are written to GGUF")
    texts = {index: text for text, index in tokenizer["model"]["vocab"].items()}
    types = dict.fromkeys(texts, NORMAL)
    for token in tokenizer["added_tokens"]:
        texts[token["id"]] = token["content"]
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    # Embeddings are often padded beyond the vocabulary.
    tokens = [texts.get(index, f"[PAD{index}]") for index in range(size)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    kinds = [types.get(index, CONTROL) for index in range(size)]
    return {"tokens": tokens, "types": kinds, "merges": merges, "split": _split_name(tokenizer["pre_tokenizer"])}


def _split_name(pre_tokenizer: dict[str, Any]) -> str:
    parts = pre_tokenizer.get("pretokenizers") or [pre_tokenizer]
    if [part["type"] for part in parts] == ["Digits", "ByteLevel"] and parts[0]["individual_digits"]:
        return "smollm"
    if parts[0]["type"] == "Split":
        for name, pattern in SPLITS.items():
            if parts[0]["pattern"].get("Regex") == pattern:
                return name
    raise UnsupportedModel("this tokenizer splits text in a way that GGUF has no name for that we know")


def _write_tokenizer(writer: Any, source: Path, vocabulary: dict[str, Any]) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary["split"])
    writer.add_token_list(vocabulary["tokens"])
    writer.add_token_types(vocabulary["types"])
    writer.add_token_merges(vocabulary["merges"])
    ids = read_token_ids(source)
    end = ids.get("eos_token_id")
    if (start := ids.get("bos_token_id")) is not None:
        writer.add_bos_token_id(start)
    if end is not None:
        writer.add_eos_token_id(end[0] if isinstance(end, list) else end)
    if (pad := ids.get("pad_token_id")) is not None:
        writer.add_pad_token_id(pad)
    writer.add_add_bos_token(False)
    settings = source / "tokenizer_config.json"
    template = json.loads(settings.read_text()).get("chat_template") if settings.is_file() else None
    if (source / "chat_template.jinja").is_file():
        template = (source / "chat_template.jinja").read_text(encoding="utf-8")
    if isinstance(template, str):
        writer.add_chat_template(template)
