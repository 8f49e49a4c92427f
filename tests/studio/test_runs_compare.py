"""Two runs side by side: the ends of their metrics, and what they share."""

from __future__ import annotations

import json

import pytest

from noria.artifacts import Store
from noria.artifacts.errors import Unknown
from noria.cli import status_of
from noria.studio.runs_compare import MetricPair, compare
from noria.studio.training_metrics import PROBE


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    for run, (key, end) in enumerate([("k1", 2.0), ("k2", 1.5)], start=1):
        assert store.runs.start_run("nano", {}) == run
        for position, (name, made) in enumerate([("shards", "same"), ("base_model", key)]):
            store.runs.start_step(run, name, position, "s", made, "made", "")
        for step in range(20):
            store.runs.log(run, "base_model", step, {"loss_ce": 5.0 if step < 18 else end})
            store.runs.log(run, "shards", step, {"documents": 7.0})
    return store


def test_metrics_are_compared_by_their_last_tenth_and_shared_artifacts_are_said_to_be_so(store):
    assert compare(store.runs, 1, 2) == [
        MetricPair("shards", "documents", 7.0, 7.0, True),
        MetricPair("base_model", "loss_ce", 2.0, 1.5, False),
    ]


def test_an_unknown_run_is_refused_with_those_that_there_are(store):
    with pytest.raises(Unknown, match="there is no run 9; the store has runs 1, 2"):
        compare(store.runs, 1, 9)


def test_the_command_prints_both(store, tmp_path, capsys):
    assert status_of(["runs", "compare", "1", "2", "--store", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[1]["right"] == 1.5
    assert status_of(["runs", "compare", "1", "2", "--store", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "same artifact" in out and "-0.5" in out


def test_speed_is_the_median_and_memory_the_most_of_all_steps(store, tmp_path, capsys):
    for run, most in ((1, 8e8), (2, 2.5e9)):
        for step in range(20):
            costs = {"tokens_per_second": 10.0 if step < 17 else 900.0, "peak_memory_bytes": most if step == 3 else 1e8}
            store.runs.log(run, "base_model", step, costs)
    found = {pair.metric: (pair.left, pair.right) for pair in compare(store.runs, 1, 2)}
    assert found["tokens_per_second"] == (10.0, 10.0) and found["peak_memory_bytes"] == (8e8, 2.5e9)
    assert status_of(["runs", "compare", "1", "2", "--store", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(words in printed for words in ("800MB", "2.5GB", "+1.7GB"))


def test_the_probe_of_training_is_told_from_the_accuracy_that_the_verdict_compares(store, tmp_path, capsys):
    for run in (1, 2):
        store.runs.log(run, "base_model", 0, {"heldout": 0.5})
    assert status_of(["runs", "compare", "1", "2", "--store", str(tmp_path)]) == 0
    assert PROBE in capsys.readouterr().out


def test_the_runs_of_a_store_are_listed_and_looking_makes_no_store(store, tmp_path, capsys):
    assert status_of(["runs", "list", "--store", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["run"], row["name"], row["steps"]) for row in rows] == [
        (1, "nano", {"made": 2}),
        (2, "nano", {"made": 2}),
    ]
    assert status_of(["runs", "list", "--store", str(tmp_path)]) == 0
    assert "2 made" in capsys.readouterr().out
    assert status_of(["runs", "list", "--store", str(tmp_path / "none")]) == 0
    assert status_of(["runs", "compare", "1", "2", "--store", str(tmp_path / "none")]) != 0
    assert not (tmp_path / "none").exists()
