"""The whole chain, for real, through the command line: recipes/debug.toml in a store of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
RECIPE = str(ROOT / "recipes" / "debug.toml")

pytestmark = pytest.mark.slow


def noria(store: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "noria", *arguments, "--store", str(store)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain") / "store"
    noria(folder, "run", RECIPE)
    return folder


def steps(store: Path, *arguments: str) -> Mapping[str, Mapping[str, Any]]:
    planned = json.loads(noria(store, "plan", RECIPE, "--json", *arguments))
    return {step["name"]: step for step in planned["steps"]}


def test_a_second_run_of_an_unchanged_recipe_does_nothing(store: Path) -> None:
    assert "nothing to do" in noria(store, "run", RECIPE)
    assert {step["action"] for step in steps(store).values()} == {"reuse"}


def test_a_changed_field_is_named_and_only_what_lies_below_it_runs(store: Path) -> None:
    planned = steps(store, "--set", "pretraining.learning_rate=0.001")
    change = planned["base_model"]["changes"]
    assert [entry["field"] for entry in change] == ["config.learning_rate"]
    reused = {name for name, step in planned.items() if step["action"] == "reuse"}
    above = {"registry", "graders", "raw_data", "corpus", "tokenizer", "shards", "ladder", "plan"}
    assert reused == above | {"posttraining_tasks", "agent_demonstrations"}
    assert planned["base_model"]["last_seconds"] > 0 and planned["base_model"]["memory_bytes"] > 1e6
    assert planned["shards"]["last_seconds"] is None and planned["cold_start"]["memory_bytes"] is None


def test_the_release_is_traced_to_records_in_raw_files_and_a_source_to_its_descendants(store: Path) -> None:
    upstream = json.loads(noria(store, "lineage", "release", "--upstream", "--json"))
    assert "offset" in json.dumps(upstream) and ".warc.gz" in json.dumps(upstream)
    downstream = json.loads(noria(store, "lineage", "king_james_bible", "--downstream", "--json"))
    assert "base_model" in json.dumps(downstream) and "release" in json.dumps(downstream)


def test_every_step_left_whole_artifacts_and_nothing_half_done(store: Path) -> None:
    from noria.artifacts import Store

    opened = Store(store)
    for key in opened.keys():
        opened.verify(key)
    assert not [path for path in (store / "work").glob("*/*") if path.is_dir()]


def test_loop_a_keeps_only_consented_traffic_and_loop_b_moves_weights(store: Path) -> None:
    from noria.artifacts import Store

    opened = Store(store)
    sifted = opened.get(opened.resolve("traffic_to_data_1"))
    mixture = opened.get(opened.resolve("evals_to_pretraining_1"))
    assert sifted is not None and mixture is not None
    assert sifted.metrics["rejects"]["consent"] > 0
    body = json.loads((mixture.content / "mixture.json").read_text())
    assert body["rule"] and abs(sum(body["weights"].values()) - 1.0) < 1e-6 and body["before"] != body["weights"]


def test_turn_two_is_planned_on_what_turn_one_learned(store: Path) -> None:
    planned = steps(store, "--turn", "2")
    assert planned["corpus"]["action"] == "reuse" and planned["shards"]["action"] == "run"
    verdict = json.loads(noria(store, "why", "verdict", "--json"))["manifest"]["metrics"]
    assert 1 <= len(verdict["reasons"]) <= 3
    # What was rejected is nothing to be compared with.
    assert ("evaluate_incumbent" in planned) == (verdict["decision"] == "release")


def test_turn_two_runs_on_what_was_said_to_a_server(store: Path) -> None:
    from noria.artifacts import Store

    opened = Store(store)
    traffic = opened.get(opened.resolve("traffic"))
    assert traffic is not None
    noria(store, "run", RECIPE, "--turn", "2", "--traffic", str(traffic.observed / "traffic.sqlite"))
    documents = opened.get(opened.resolve("live_traffic_to_data_1"))
    assert documents is not None and documents.metrics["rows"] == traffic.metrics["requests"]
    shards = opened.get(opened.resolve("shards"))
    assert shards is not None and documents.key in shards.manifest.inputs.values()
    assert "nothing to do" in noria(store, "run", RECIPE, "--turn", "2")
    assert "nothing to do" in noria(store, "run", RECIPE)


def test_a_recipe_pretrains_on_two_processes_to_the_losses_of_one(store: Path) -> None:
    """Sums over ranks have another order: losses agree within 1e-4 nats after every step."""
    from noria.artifacts import Store

    def losses(processes: int) -> list[float]:
        batch = ("--set", "system.batch_tokens=1024")  # four rows a step, two for each of two ranks
        noria(store, "run", RECIPE, "--only", "plan", *batch)
        noria(store, "run", RECIPE, "--only", "base_model", *batch, "--set", f"pretraining.processes={processes}")
        opened = Store(store)
        made = opened.get(opened.resolve("base_model"))
        assert made is not None
        return [row["loss_ce"] for row in json.loads((made.content / "history.json").read_text())]

    one, two = losses(1), losses(2)
    assert len(one) > 10
    assert two == pytest.approx(one, abs=1e-4) and two != one
