"""The stage's steps, run through the executor on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from noria.artifacts import Artifact, Executor, Store
from noria.evals.registry import domains
from noria.stages import s6_evaluation as s6
from tests.tiny_model import write_tiny_model

CONFIG = s6.Config(items_per_domain=8, calibration_per_side=8, max_tokens=8, kept_traces=1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def import_model(store: Store, folder: Path, seed: int) -> Artifact:
    files = {path.name: path for path in write_tiny_model(folder, seed=seed).iterdir()}
    return store.import_content("model", files, {"seed": seed})


@pytest.mark.slow
def test_registry_evaluations_and_their_comparison(store: Store, tmp_path: Path):
    registry = s6.registry(CONFIG)
    first = s6.evaluate(CONFIG, import_model(store, tmp_path / "a", 0), registry, "a")
    second = s6.evaluate(CONFIG, import_model(store, tmp_path / "b", 1), registry, "b")
    compared = s6.compare(CONFIG, {"a": first, "b": second})
    made = Executor(store).run([registry, first, second, compared])

    tasks = s6.read_registry(made["registry"].content)
    assert len(tasks) == 8 * len(domains())
    items = [json.loads(line) for line in (made["evaluate_a"].content / "items.jsonl").read_text().splitlines()]
    assert [item["task_id"] for item in items] == [task.id for task in tasks]
    summary = json.loads((made["evaluate_a"].content / "summary.json").read_text())
    assert all(row["n"] == 8 and 0 <= row["low"] <= row["high"] <= 1 for row in summary["domains"].values())
    samples = (made["evaluate_a"].content / "samples.jsonl").read_text().splitlines()
    assert len(samples) == len(summary["families"])
    rows = json.loads((made["compare"].content / "comparison.json").read_text())
    assert {row["domain"] for row in rows} == set(domains()) and {row["n"] for row in rows} == {8}

    other = Store(tmp_path / "other")
    again = s6.evaluate(CONFIG, import_model(other, tmp_path / "c", 0), registry, "a")
    repeated = Executor(other).run([registry, again])["evaluate_a"]
    for name in ("items.jsonl", "summary.json", "samples.jsonl"):
        assert (repeated.content / name).read_bytes() == (made["evaluate_a"].content / name).read_bytes()


@pytest.mark.slow
def test_graders_are_measured_with_their_weak_twins(store: Store):
    made = Executor(store).run([s6.graders(CONFIG)])["graders"]
    rows = json.loads((made.content / "graders.json").read_text())
    assert set(rows) == {"maths", "maths_weak", "code", "code_weak", "logic"}
    assert all(row["true_positive"]["n"] == 8 and row["version"] for row in rows.values())
    assert made.metrics["maths_false_positive"] == 0.0


def test_only_what_matters_to_a_step_changes_its_key():
    hotter = CONFIG.model_copy(update={"temperature": 0.7})
    assert s6.registry(hotter).key == s6.registry(CONFIG).key
    registry = s6.registry(CONFIG)
    assert s6.evaluate(hotter, registry, registry, "x").key != s6.evaluate(CONFIG, registry, registry, "x").key
    more = CONFIG.model_copy(update={"items_per_domain": 9})
    assert s6.registry(more).key != registry.key


def test_equal_samples_are_refused_with_what_to_do():
    with pytest.raises(ValidationError, match="set temperature above 0 or samples = 1"):
        s6.Config(samples=4)
