"""Stage 9 from models to a promoted release and its traffic, in a store, with the real server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from noria.artifacts import Executor, Store
from noria.loops import evals_to_pretraining, traffic_to_data
from noria.stages import s6_evaluation, s9_deployment
from noria.stages.s9_deployment import Config, TrafficConfig, VerdictConfig
from tests.tiny_model import write_tiny_model

LENIENT = VerdictConfig(primary_floor=0.0, guardrails=())


def run(store: Store, *steps):
    Executor(store).run(list(steps))
    return [store.get(step.key) for step in steps]


@pytest.mark.slow
def test_the_whole_stage_and_both_loops(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    model = store.import_content("model", write_tiny_model(tmp_path / "model", context=256), name="final")
    evaluation = s6_evaluation.Config(items_per_domain=8, max_tokens=8, batch_rows=16)
    config = Config(verdict=LENIENT, traffic=TrafficConfig(users=4, requests_each=2, max_tokens=24))
    registry = s6_evaluation.registry(evaluation)
    models = {"final": model, "quantised": s9_deployment.quantised(config, model)}
    judged = {name: s6_evaluation.evaluate(evaluation, one, registry, name) for name, one in models.items()}
    candidates = s9_deployment.candidates(config, models, judged)
    verdict = s9_deployment.verdict(config, candidates)
    release = s9_deployment.release(config, verdict, models)
    traffic = s9_deployment.traffic(config, release)
    loop_a = traffic_to_data.traffic_to_data(traffic_to_data.Config(), traffic, registry)
    loop_b = evals_to_pretraining.evals_to_pretraining(
        evals_to_pretraining.Config(), verdict, {"synthetic": 0.5, "books": 0.5}, {"synthetic": ("addition",)}
    )
    steps = [registry, models["quantised"], *judged.values(), candidates, verdict, release, traffic, loop_a, loop_b]
    *_, verdict_made, release_made, traffic_made, data, mixture = run(store, *steps)

    facts = json.loads((release_made.content / "release.json").read_text())
    assert (facts["decision"], facts["candidate"]) == ("release", "quantised")  # equals are told apart by bytes
    card = (release_made.content / "model_card.md").read_text() + (release_made.content / "system_card.md").read_text()
    assert "release" in card and "addition" in card and "nan" not in card
    assert s9_deployment.promote(store, verdict_made, release_made)
    assert store.alias("release/prod").key == release_made.key
    assert not s9_deployment.promote(store, verdict_made, release_made)

    assert traffic_made.metrics["requests"] == 4 * 2 + 8 and traffic_made.metrics["consent_none"] == 2
    assert "@mail.example" not in (traffic_made.content / "traffic.jsonl").read_text()
    assert data.metrics["rejects"] and sum(data.metrics["rejects"].values()) + data.metrics["prompts"] == 16
    weights = json.loads((mixture.content / "mixture.json").read_text())
    assert weights["after"]["synthetic"] > weights["before"]["synthetic"] and weights["rule"]

    again = Store(tmp_path / "again")
    shutil.copytree(store.root, again.root)
    for step in (traffic, loop_a):
        again.remove(step.key)
    for first, second in zip((traffic_made, data), run(again, traffic, loop_a), strict=True):
        assert first.manifest.files.keys() == second.manifest.files.keys()
        for name, entry in first.manifest.files.items():
            assert entry.hash == second.manifest.files[name].hash, name


def test_without_a_release_the_incumbent_is_kept_and_nothing_moves(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    model = store.import_content("model", write_tiny_model(tmp_path / "model"), name="final")
    old = store.import_content("release", write_tiny_model(tmp_path / "old", seed=5), name="release")
    rows = {
        name: {
            "scores": {"correct": {f"i{n}": float(n % 10 < rate) for n in range(100)}},
            "slices": {f"i{n}": "addition" for n in range(100)},
            "costs": {"weight_bytes": 1.0},
            "model": "",
        }
        for name, rate in (("final", 2), ("incumbent", 6))
    }
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "candidates.json").write_text(json.dumps(rows))
    candidates = store.import_content("candidates", tmp_path / "c")
    verdict = s9_deployment.verdict(Config(verdict=LENIENT), candidates)
    release = s9_deployment.release(Config(), verdict, {"final": model}, old)
    verdict_made, release_made = run(store, verdict, release)
    assert json.loads((verdict_made.content / "verdict.json").read_text())["decision"] == "reject"
    assert json.loads((release_made.content / "release.json").read_text())["kept_incumbent"]
    assert s9_deployment.holds_a_release(release_made)  # what was released once stays the incumbent
    (reason, *more) = verdict_made.metrics["reasons"]
    assert "correct is not better than the incumbent" in reason and len(more) <= 2
    assert (release_made.content / "model.safetensors").read_bytes() == (old.content / "model.safetensors").read_bytes()
    assert not s9_deployment.promote(store, verdict_made, release_made)
    assert store.alias("release/prod") is None


def test_a_rejected_model_never_becomes_the_incumbent_of_the_next_turn(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    model = store.import_content("model", write_tiny_model(tmp_path / "model"), name="final")
    scores = {"correct": {f"i{n}": float(n % 10 < 2) for n in range(100)}}
    row = {"scores": scores, "slices": dict.fromkeys(scores["correct"], "sums"), "costs": {}, "model": ""}
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "candidates.json").write_text(json.dumps({"final": row}))
    candidates = store.import_content("candidates", tmp_path / "c")
    for floor, decision in ((0.9, "reject"), (0.2, "inconclusive"), (0.0, "release")):
        rules = VerdictConfig(primary_floor=floor, guardrails=())
        verdict = s9_deployment.verdict(Config(verdict=rules), candidates)
        verdict_made, release_made = run(store, verdict, s9_deployment.release(Config(), verdict, {"final": model}))
        assert verdict_made.metrics["decision"] == decision
        assert s9_deployment.holds_a_release(release_made) == (decision == "release")


def test_a_model_without_evaluation_is_refused(tmp_path: Path) -> None:
    model = Store(tmp_path / "s").import_content("model", write_tiny_model(tmp_path / "model"))
    with pytest.raises(ValueError, match="no evaluation of final"):
        s9_deployment.candidates(Config(), {"final": model}, {})
