"""A model on disk: what is written comes back bit for bit, and what is no model is refused in words."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from noria.deployment.quantize import quantise_folder
from noria.model import ModelConfig, ModelFolderError, Transformer, load_model, read_config, save_model

CONFIG = ModelConfig(vocab_size=40, width=16, layers=2, heads=2, kv_heads=1, ffn_width=24, context=8)


def write(tmp_path, tied=True):
    (tmp_path / "source.json").write_text("{}")
    model = Transformer(CONFIG.model_copy(update={"tied": tied}), seed=3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    save_model(tmp_path / "model", model, tmp_path / "source.json", {"note": "kept"})
    return model, tmp_path / "model"


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_comes_back_bit_for_bit(tmp_path, tied):
    model, folder = write(tmp_path, tied)
    loaded = load_model(folder)
    assert not loaded.training and loaded.config == model.config
    assert (loaded.head.weight is loaded.embedding.weight) == tied
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert read_config(folder)[1]["note"] == "kept" and (folder / "tokenizer.json").read_text() == "{}"


def test_a_tied_head_is_stored_once(tmp_path):
    _, folder = write(tmp_path)
    stored = load_file(folder / "model.safetensors")
    assert "head.weight" not in stored
    assert sum(tensor.numel() for tensor in stored.values()) == CONFIG.parameters()


def test_a_model_can_be_saved_over_itself(tmp_path):
    model, folder = write(tmp_path)
    save_model(folder, model, folder / "tokenizer.json")
    assert torch.equal(load_model(folder).embedding.weight, model.embedding.weight)


def test_an_int8_folder_loads_within_half_a_step_of_the_original(tmp_path):
    model, folder = write(tmp_path)
    quantise_folder(folder, tmp_path / "int8")
    for name, tensor in load_model(tmp_path / "int8").state_dict().items():
        exact = model.state_dict()[name]
        assert tensor.dtype == torch.float32
        step = exact.abs().amax(-1, keepdim=True) / 127 if exact.ndim == 2 else 0.0
        assert ((tensor - exact).abs() <= step / 2 + 1e-6).all(), name


def test_a_folder_whose_writing_was_interrupted_is_no_model(tmp_path):
    model, folder = write(tmp_path)
    with pytest.raises(FileNotFoundError):
        save_model(folder, model, tmp_path / "no such tokenizer")
    with pytest.raises(ModelFolderError, match="not a model folder"):
        load_model(folder)


def edited(folder, **changes):
    payload = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(payload | changes))


def without(folder, *names, **added):
    state = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in state.items() if k not in names} | added, folder / "model.safetensors")


BROKEN = {
    "no config.json": (lambda f: (f / "config.json").unlink(), "not a model folder"),
    "not JSON": (lambda f: (f / "config.json").write_text("{"), "config.json does not describe"),
    "not UTF-8": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"), "config.json does not describe"),
    "another kind of file": (lambda f: (f / "config.json").write_text("[1]"), "config.json does not describe"),
    "a foreign model": (lambda f: (f / "config.json").write_text('{"model_type": "llama"}'), "no 'architecture'"),
    "an impossible shape": (lambda f: edited(f, architecture={**CONFIG.model_dump(), "heads": 3}), "heads"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors cannot be read"),
    "truncated weights": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:100]),
        "model.safetensors cannot be read",
    ),
    "a missing tensor": (lambda f: without(f, "final_norm.weight"), "missing.*final_norm.weight"),
    "an unknown tensor": (lambda f: without(f, extra=torch.ones(1)), "unexpected.*extra"),
    "another shape": (
        lambda f: edited(f, architecture={**CONFIG.model_dump(), "ffn_width": 32}),
        r"blocks.0.(up|down).weight is \(",
    ),
    "a second head": (lambda f: without(f, **{"head.weight": torch.ones(40, 16)}), "head is tied"),
    "integers without a scheme": (
        lambda f: without(f, **{"embedding.weight": torch.ones(40, 16, dtype=torch.int8)}),
        "names no quantization",
    ),
    "a scale without its matrix": (
        lambda f: (edited(f, quantization={"bits": 8}), without(f, **{"blocks.9.up.weight.scale": torch.ones(3)})),
        "no matrix of 3 rows",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_refused_with_what_is_wrong(tmp_path, name):
    damage, message = BROKEN[name]
    _, folder = write(tmp_path)
    damage(folder)
    with pytest.raises(ModelFolderError, match=message) as refused:
        load_model(folder)
    assert name == "a scale without its matrix" or str(folder) in str(refused.value)
