from __future__ import annotations

import os
import sqlite3

import pytest

from noria.artifacts import Executor, StoreError, runs
from noria.artifacts.runs import RunDatabase


def test_metrics_of_an_artifact_are_one_curve_over_all_runs_that_made_it(store, chain):
    def step(context):
        first = not any(context.progress.iterdir())
        (context.progress / "saved").touch()
        for number in range(4) if first else range(2, 6):
            context.log(number, loss=10.0 - number if first else 1.0)
        if first:
            raise RuntimeError("stop")
        return {}

    with pytest.raises(StoreError):
        Executor(store).run(chain(run=step))
    Executor(store).run(chain(run=step))
    key = chain()[-1].key
    assert store.runs.metric_names(key) == ["loss"]
    assert store.runs.curve(key, "loss") == [(0, 10.0), (1, 9.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 1.0)]


def test_events_keep_their_evidence(store, chain):
    def step(context):
        context.event("guard", "loss spiked", step=7, loss=99.0)
        return {}

    Executor(store).run(chain(run=step))
    event = store.runs.events(1)[0]
    assert (event["kind"], event["step_name"], event["data"]) == ("guard", "model", {"step": 7, "loss": 99.0})


def test_older_database_is_migrated_with_its_rows(tmp_path, monkeypatch):
    path = tmp_path / "runs.sqlite"
    old = RunDatabase(path)
    number = old.start_run("nano", {})
    old.close()
    monkeypatch.setattr(runs, "MIGRATIONS", (*runs.MIGRATIONS, "ALTER TABLE runs ADD COLUMN turn INTEGER DEFAULT 1"))
    monkeypatch.setattr(runs, "SCHEMA", 2)
    assert [(row["run"], row["turn"]) for row in RunDatabase(path).runs()] == [(number, 1)]


def test_opening_to_read_writes_nothing(tmp_path):
    path = tmp_path / "runs.sqlite"
    first = RunDatabase(path)
    first.start_run("nano", {})
    first.close()
    os.utime(path, ns=(0, 0))
    content = path.read_bytes()
    second = RunDatabase(path)
    assert [row["name"] for row in second.runs()] == ["nano"]
    second.close()
    assert path.stat().st_mtime_ns == 0 and path.read_bytes() == content


def test_newer_database_is_refused_unchanged(tmp_path):
    path = tmp_path / "runs.sqlite"
    RunDatabase(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="schema 99, made by a newer noria"):
        RunDatabase(path)


def test_broken_database_is_named_with_the_word_that_no_artifact_is_lost(tmp_path):
    path = tmp_path / "runs.sqlite"
    path.write_text("not a database, " * 100)
    with pytest.raises(StoreError, match=r"runs\.sqlite: file is not a database.*no artifact is lost"):
        RunDatabase(path)


def test_last_time_sums_the_starts_that_led_to_the_artifact_and_leaves_out_an_earlier_making(tmp_path):
    runs = RunDatabase(tmp_path / "runs.sqlite")
    rows = [("made", 50), ("interrupted", 10), ("killed", None), ("made", 5), ("reused", 1)]
    for run, (status, seconds) in enumerate(rows, start=1):
        assert runs.start_run("nano", {}) == run
        runs.start_step(run, "model", 0, "s", "key", status, "")
        end = f"2026-01-01T00:00:{seconds:02d}+00:00" if seconds is not None else None
        runs.update_step(run, "model", started="2026-01-01T00:00:00+00:00", finished=end)
    seconds, name = runs.last_time("model", "nano")
    assert (round(seconds), name) == (15, "nano")
    assert runs.last_time("other", "nano") is None
