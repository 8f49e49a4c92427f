"""Which steps of a run a user means."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from noria.artifacts import Unknown
from noria.studio.lookup import select

STEPS = [
    SimpleNamespace(name=name, stage=stage)
    for name, stage in (
        ("raw", "s1_raw_data"),
        ("corpus", "s2_data_engineering"),
        ("shards", "s2_data_engineering"),
        ("plan", "s3_system_recipe"),
        ("base_model", "s4_pretraining"),
    )
]


def names(*asked):
    return [step.name for step in select(STEPS, *asked)]


def test_a_run_goes_from_the_first_step_of_a_stage_to_the_last_one_of_a_stage():
    assert names(None, None) == [step.name for step in STEPS]
    assert names(None, None, "data_engineering") == ["raw", "corpus", "shards"]
    assert names(None, "2", "s3") == ["corpus", "shards", "plan"]
    assert names(None, "shards", "plan") == ["shards", "plan"]
    assert names("2", None, "corpus") == ["corpus"]


def test_what_leaves_nothing_or_is_not_there_is_refused():
    with pytest.raises(Unknown, match="--from plan --to corpus leave no step"):
        names(None, "plan", "corpus")
    with pytest.raises(Unknown, match="Did you mean base_model"):
        names(None, None, "base_modle")
