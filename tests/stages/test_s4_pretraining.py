"""Pretraining as a stage: what is part of its identity."""

from __future__ import annotations

from types import SimpleNamespace

from noria.stages.s4_pretraining import Config, base_model


def test_the_number_of_processes_is_identity_as_world_size_alone():
    """One process is what a recipe without the field means, so its artifacts stay valid."""
    inputs = [SimpleNamespace(key=name) for name in ("plan", "shards", "tokenizer")]
    default, one, two = (
        base_model(config, *inputs, seed=0, threads=1)
        for config in (Config(), Config(processes=1), Config(processes=2))
    )
    assert default.key == one.key != two.key
    assert two.numerics.world_size == 2 and "processes" not in two.canonical_config
