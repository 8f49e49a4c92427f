from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from noria.artifacts import Artifact, Executor, Store
from noria.data.shards import write_shards
from noria.data.tokenizer import train_tokenizer
from noria.stages import s3_system_recipe as s3
from noria.training import proxies

SMALL: dict[str, Any] = {
    "ladder_flops": 2e9,
    "ladder_widths": (16, 32),
    "ladder_horizons": (0.35, 0.6, 1.0),
    "rate_sweep": (0.02, 0.05),
    "head_width": 16,
    "sequence_length": 32,
    "heldout_rows": 4,
    "flops": 2e10,
    "min_parameters": 10_000,
    "max_parameters": 100_000,
    "max_epochs": 1000.0,
    "bootstrap": 10,
}


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[Store, Artifact, Artifact]:
    """Shards of repetitive text with their tokenizer, as stage 2 leaves them."""
    texts = [f"the wheel turns {number} times and lifts {number} buckets" for number in range(200)]
    tokenizer = train_tokenizer(texts, 320)
    ids = [np.array([tokenizer.bos, *tokenizer.encode(text), tokenizer.end], np.uint16) for text in texts]
    made = tmp_path / "made"
    for split, chosen in (("train", slice(0, 180)), ("heldout", slice(180, 200))):
        names = [str(index) for index in range(200)][chosen]
        write_shards(made / "shards" / "wheel" / split, pa.table({"id": names}), ids[chosen], tokenizer.digest)
    facts = {
        "train_tokens": sum(map(len, ids[:180])),
        "heldout_tokens": sum(map(len, ids[180:])),
        "heldout_bytes": sum(map(len, texts[180:])),
        "licence": "CC0-1.0",
    }
    body = {"sources": {"wheel": facts}, "weights": {"wheel": 1.0}}
    (made / "shards" / "shards.json").write_text(json.dumps(body))
    tokenizer.save(made / "tokenizer.json")
    store = Store(tmp_path / "store")
    return (
        store,
        store.import_content("shards", made / "shards"),
        store.import_content("tokenizer", {"tokenizer.json": made / "tokenizer.json"}),
    )


@pytest.mark.slow
def test_a_ladder_is_trained_fitted_and_decided(inputs: tuple[Store, Artifact, Artifact]):
    store, shards, tokenizer = inputs
    config = s3.Config(**SMALL)
    ladder = s3.ladder(config, shards, tokenizer)
    plan = s3.plan(config, ladder, shards, tokenizer)
    made = Executor(store).run([ladder, plan])

    measured = json.loads((made["ladder"].content / "ladder.json").read_text())
    assert len(measured["points"]) == 6 and len(measured["sweep"]) == 2
    assert all(point["loss"] < math.log(320) for point in measured["points"])  # better than a guess

    decided = json.loads((made["plan"].content / "plan.json").read_text())
    assert 10_000 <= decided["parameters"] <= 100_000 and decided["flops"] <= 2e10
    assert decided["predicted_loss"]["low"] <= decided["predicted_loss"]["mean"] <= decided["predicted_loss"]["high"]
    forecast = json.loads((made["plan"].observed / "forecast.json").read_text())
    assert forecast["seconds"] > 0 and "second" not in (made["plan"].content / "plan.json").read_text()


def test_the_budget_does_not_touch_the_ladder_and_its_own_fields_do(inputs: tuple[Store, Artifact, Artifact]):
    _, shards, tokenizer = inputs

    def keys(**changes: Any) -> tuple[str, str]:
        config = s3.Config(**{**SMALL, **changes})
        ladder = s3.ladder(config, shards, tokenizer)
        return ladder.key, s3.plan(config, ladder, shards, tokenizer).key

    ladder, plan = keys()
    assert keys(flops=3e10)[0] == ladder and keys(flops=3e10)[1] != plan
    assert keys(rate_sweep=(0.03,))[0] != ladder
    assert keys(ladder_repeats=2)[0] != ladder


def test_the_ladder_trains_with_the_optimiser_of_the_run(inputs: tuple[Store, Artifact, Artifact], monkeypatch):
    """Or the predicted loss, and the swept rate, would be those of another optimiser."""
    store, shards, tokenizer = inputs
    asked = []

    def told(*settings: Any) -> Any:
        asked.append(settings[0].muon)
        return {"points": [], "learning_rate": 0.02, "batch_tokens": 32, "flops": 1.0}, 1.0

    monkeypatch.setattr(proxies, "run_ladder", told)
    steps = [s3.ladder(s3.Config(**SMALL), shards, tokenizer, **how) for how in ({}, {"muon": True}, {"muon": False})]
    assert steps[0].key == steps[1].key != steps[2].key
    assert "muon" not in steps[0].canonical_config
    for step in (steps[0], steps[2]):
        Executor(store).run([step])
    assert asked == [True, False]


def test_what_only_memory_depends_on_is_part_of_a_plans_key_where_it_is_not_the_default(
    inputs: tuple[Store, Artifact, Artifact],
):
    _, shards, tokenizer = inputs
    config = s3.Config(**SMALL)
    ladder = s3.ladder(config, shards, tokenizer)

    def key(**how: Any) -> str:
        return s3.plan(config, ladder, shards, tokenizer, **how).key

    assert key() == key(muon=True, weight_precision="float32")
    assert len({key(), key(muon=False), key(weight_precision="bfloat16")}) == 3


@pytest.mark.slow
def test_each_repeat_of_a_ladder_has_a_seed_of_its_own_and_the_first_is_the_ladder_without_repeats(
    inputs: tuple[Store, Artifact, Artifact],
):
    store, shards, tokenizer = inputs

    def points(**changes: Any) -> list[dict[str, Any]]:
        ladder = s3.ladder(s3.Config(**{**SMALL, "rate_sweep": (0.03,), **changes}), shards, tokenizer)
        return json.loads((Executor(store).run([ladder])["ladder"].content / "ladder.json").read_text())["points"]

    once, twice = points(), points(ladder_repeats=2, ladder_flops=2 * SMALL["ladder_flops"])
    assert twice[:6] == once
    assert [point["repeat"] for point in twice] == [0] * 6 + [1] * 6
    assert all(a["tokens"] == b["tokens"] and a["loss"] != b["loss"] for a, b in zip(once, twice[6:], strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ladder_widths": (16, 40)}, "not multiples of head_width"),
        ({"ladder_horizons": (0.5, 1.0)}, "fewer than the six points"),
        ({"min_parameters": 200_000}, "above max_parameters"),
        ({"parameters": 5}, "outside min_parameters"),
        ({"parameters": 50_000, "train_tokens": 10**7}, 'set one of the two to "auto"'),
        ({"ladder_batch_tokens": 33}, "not a multiple of sequence_length"),
        ({"batch_tokens": 33}, "not a multiple of sequence_length"),
    ],
)
def test_contradictions_are_refused_before_any_work(changes: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        s3.Config(**{**SMALL, **changes})
