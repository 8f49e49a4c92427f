"""Pretraining as a stage: what is part of its identity."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from torch._inductor import cpp_builder, exc

from noria.model import ModelConfig
from noria.planning import training_bytes
from noria.stages import precision
from noria.stages.s4_pretraining import Config, SpeedIdentity, base_model, predicted_memory

INPUTS = [SimpleNamespace(key=name) for name in ("plan", "shards", "tokenizer")]


def test_the_number_of_processes_is_identity_as_world_size_alone():
    """One process is what a recipe without the field means, so its artifacts stay valid."""
    inputs = [SimpleNamespace(key=name) for name in ("plan", "shards", "tokenizer")]
    default, one, two = (
        base_model(config, *inputs, seed=0, threads=1)
        for config in (Config(), Config(processes=1), Config(processes=2))
    )
    assert default.key == one.key != two.key
    assert two.numerics.world_size == 2 and "processes" not in two.canonical_config


def test_settings_of_speed_are_identity_only_where_they_are_not_the_default():
    plain, spelled = (base_model(config, *INPUTS, seed=0, threads=1) for config in (Config(), Config(compile=False)))
    asked = Config(precision="bfloat16", weight_precision="bfloat16", compile=True)
    fast = base_model(asked, *INPUTS, seed=0, threads=1)
    assert plain.key == spelled.key != fast.key
    assert "compile" not in plain.canonical_config and fast.canonical_config["weight_precision"] == "bfloat16"
    assert isinstance(fast.config, SpeedIdentity)
    assert (fast.numerics.dtype, fast.numerics.compile) == ("bfloat16", True)


def test_predicted_memory_is_that_of_the_run_as_configured(tmp_path):
    model = ModelConfig(vocab_size=64, width=32, layers=2, heads=2, kv_heads=2, ffn_width=64, context=16)
    plan = {"model": model.model_dump(), "batch_tokens": 16 * 32, "sequence_length": 16}
    (tmp_path / "plan.json").write_text(json.dumps(plan))

    def memory(**settings):
        step = base_model(Config(**settings), *INPUTS, seed=0, threads=1)
        return predicted_memory(step, SimpleNamespace(content=tmp_path))

    plain = memory()
    assert plain == training_bytes(model, rows=16)
    assert memory(micro_batch_rows=64) == training_bytes(model, rows=32)  # no pass is larger than the batch
    assert memory(muon=False).optimiser > plain.optimiser
    low = memory(precision="bfloat16", weight_precision="bfloat16")
    assert low.weights < 0.6 * plain.weights and low.optimiser < 0.6 * plain.optimiser
    assert memory(processes=2) is None


def test_bf16_weights_are_refused_before_anything_runs(monkeypatch):
    for wrong in ({"precision": "float32"}, {"precision": "bfloat16", "processes": 2}):
        with pytest.raises(ValueError, match="weight_precision"):
            Config(weight_precision="bfloat16", **wrong)
    monkeypatch.setattr(precision, "BF16_UNITS", ())  # a processor without units for it
    with pytest.raises(ValueError, match="this processor has no units for it, so auto is float32"):
        Config(precision="auto", weight_precision="bfloat16")


def test_compilation_without_a_compiler_is_refused_before_anything_runs(monkeypatch):
    def none():
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(ValueError, match=r"install g\+\+"):
        Config(compile=True)
