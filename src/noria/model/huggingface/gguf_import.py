"""A GGUF file becomes a model folder: metadata to a configuration, blocks of quantised numbers to tensors, its
vocabulary and merges to a tokenizer.json. The file format and the expansion of quantised blocks are the `gguf`
package's (llama.cpp's own)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from torch import Tensor

from noria.model.config import ModelConfig
from noria.model.folder import save_state
from noria.model.huggingface.families import UnsupportedModel, read_config
from noria.model.huggingface.importing import router_biases
from noria.model.huggingface.names import tensor_names

# general.architecture -> model_type of Hugging Face
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3moe": "qwen3_moe", "gemma3": "gemma3_text"}
CONTROL, USER_DEFINED = 3, 4  # tokenizer.ggml.token_type
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
SPLITS = {"qwen2": QWEN, "llama-bpe": LLAMA_3}


def import_gguf(source: Path, folder: Path, dtype: torch.dtype) -> ModelConfig:
    """See `importing.import_model`."""
    from gguf import GGUFReader

    try:
        file = GGUFReader(source)
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"{source} cannot be read as GGUF: {error}") from error
    facts = {name: field.contents() for name, field in file.fields.items()}
    tensors = {tensor.name: tensor for tensor in file.tensors}
    hf = _config(facts, tensors)
    config = read_config(hf)
    wanted = list(tensor_names(config))
    missing = [gguf for _, _, gguf in wanted if gguf not in tensors]
    extra = sorted(tensors.keys() - {gguf for _, _, gguf in wanted} - {"rope_freqs.weight"})
    if missing or extra:
        raise UnsupportedModel(f"{source}: tensors missing {missing[:3]}, unknown {extra[:3]}")
    if "rope_freqs.weight" in tensors:
        raise UnsupportedModel(f"{source} scales rotary frequencies by a table; import the Hugging Face folder instead")
    tokenizer = gguf_tokenizer(facts)
    state = {ours: _expanded(tensors[gguf]).to(dtype) for ours, _, gguf in wanted}
    if facts["general.architecture"] == "llama":
        for ours in state:
            if ours.endswith(("attention.query.weight", "attention.key.weight")):
                heads = config.heads if "query" in ours else config.kv_heads
                state[ours] = halves_from_pairs(state[ours], heads)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_chat(folder, facts)
    name = facts.get("general.name", source.stem)
    save_state(folder, config, state | router_biases(config), folder / "tokenizer.json", {"imported_from": name})
    return config


def halves_from_pairs(weight: Tensor, heads: int) -> Tensor:
    """llama.cpp rotates neighbours (2i, 2i + 1) for the llama architecture, we rotate (i, i + d/2): rows move within
    each head from the one order to the other. `pairs_from_halves` undoes it."""
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _config(facts: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata as the config.json that the model was made from."""
    name = facts.get("general.architecture")
    if name not in ARCHITECTURES:
        raise UnsupportedModel(f"GGUF architecture {name!r} is not supported; there are {', '.join(ARCHITECTURES)}")

    def get(key: str, default: Any = None) -> Any:
        return facts.get(f"{name}.{key}", default)

    heads, width = get("attention.head_count"), get("embedding_length")
    hf = {
        "model_type": ARCHITECTURES[name],
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),
        "hidden_size": width,
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", heads),
        "head_dim": get("attention.key_length") or get("rope.dimension_count") or width // heads,
        "intermediate_size": get("feed_forward_length"),
        "max_position_embeddings": get("context_length"),
        # Stored in fp32: back to the decimal that was meant.
        "rms_norm_eps": float(f"{get('attention.layer_norm_rms_epsilon', 1e-6):.6g}"),
        "rope_theta": get("rope.freq_base", 1e6 if name == "gemma3" else 10_000.0),
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    scaling = get("rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise UnsupportedModel(f"rotary scaling {scaling!r} in GGUF; import the Hugging Face folder instead")
    if scaling == "linear":
        hf["rope_scaling"] = {"rope_type": "linear", "factor": get("rope.scaling.factor")}
    if name == "qwen3moe":
        hf |= {
            "num_experts": get("expert_count"),
            "num_experts_per_tok": get("expert_used_count"),
            "moe_intermediate_size": get("expert_feed_forward_length"),
            "norm_topk_prob": True,  # llama.cpp always divides by the sum for this architecture
        }
    if name == "gemma3":
        hf |= {
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": hf["head_dim"],
            "sliding_window": get("attention.sliding_window"),
            "final_logit_softcapping": get("final_logit_softcapping"),
            "rope_local_base_freq": get("rope.freq_base_swa", 10_000.0),
        }
    return hf


def _expanded(tensor: Any) -> Tensor:
    """fp32, with the shape of the matrix; GGUF names dimensions from the fastest on."""
    from gguf.quants import dequantize

    numbers = dequantize(tensor.data, tensor.tensor_type)
    return torch.from_numpy(numbers.reshape([int(size) for size in reversed(tensor.shape)]).copy())


def gguf_tokenizer(facts: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The byte-level BPE that the file describes. Raises UnsupportedModel for other kinds and unknown splits."""
    kind, split = facts.get("tokenizer.ggml.model"), facts.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2":
        raise UnsupportedModel(
            f"tokenizer {kind!r} in GGUF; import the Hugging Face folder, which has a tokenizer.json"
        )
    texts = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in facts["tokenizer.ggml.merges"]]
    made = tokenizers.Tokenizer(models.BPE({text: index for index, text in enumerate(texts)}, merges))
    if split == "smollm":
        parts: list[Any] = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    elif split in SPLITS:
        parts = [
            pre_tokenizers.Split(Regex(SPLITS[split]), "isolated"),
            pre_tokenizers.ByteLevel(False, use_regex=False),
        ]
    else:
        raise UnsupportedModel(f"tokenizer split {split!r} in GGUF; known are smollm, {', '.join(SPLITS)}")
    made.pre_tokenizer = pre_tokenizers.Sequence(parts)
    made.decoder = decoders.ByteLevel()
    types = facts["tokenizer.ggml.token_type"]
    for wanted, special in ((CONTROL, True), (USER_DEFINED, False)):
        chosen = [text for text, type_ in zip(texts, types, strict=True) if type_ == wanted]
        made.add_tokens([AddedToken(text, special=special, normalized=False) for text in chosen])
    return made


def _write_chat(folder: Path, facts: Mapping[str, Any]) -> None:
    """tokenizer_config.json and generation_config.json, as a Hugging Face folder would have them."""
    texts = facts["tokenizer.ggml.tokens"]
    ids = {
        "bos": facts.get("tokenizer.ggml.bos_token_id"),
        "eos": facts.get("tokenizer.ggml.eos_token_id"),
        "pad": facts.get("tokenizer.ggml.padding_token_id"),
    }
    known = {name: index for name, index in ids.items() if index is not None}
    settings: dict[str, Any] = {f"{name}_token": texts[index] for name, index in known.items()}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if "tokenizer.chat_template" in facts:
        settings["chat_template"] = facts["tokenizer.chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
    generation = {f"{name}_token_id": index for name, index in known.items()}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n")
