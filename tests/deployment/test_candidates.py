"""What the verdict is told about a candidate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from noria.deployment.candidates import agent_scores, candidate_json
from tests.tiny_model import write_tiny_model


def item(task: str, domain: str, correct: bool | None, kind: str = "", **components: float) -> dict:
    base = {"task_id": task, "sample": 0, "domain": domain, "family": domain, "correct": correct, "kind": kind}
    return {**base, "value": None if correct is None else float(correct), "tokens": 10, "components": components}


def test_axes_costs_and_failed_gradings(tmp_path: Path) -> None:
    items = [
        *(item("a", "maths", True), item("b", "maths", False), item("c", "code", None), item("h", "helpful", True)),
        item("d", "safety", False, "harmful", unsafe_compliance=1.0),
        item("e", "safety", True, "benign", refused=0.0),
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    found = candidate_json(write_tiny_model(tmp_path / "m"), tmp_path, None)
    assert found["scores"]["correct"] == {"a/0": 1.0, "b/0": 0.0, "c/0": None}
    assert found["scores"]["harmful_refused"] == {"d/0": 0.0} and found["scores"]["benign_answered"] == {"e/0": 1.0}
    assert found["costs"]["tokens_per_solved"] == 30
    assert found["costs"]["weight_bytes"] == (tmp_path / "m" / "model.safetensors").stat().st_size


def test_share_of_valid_calls_counts_invalid_ones_in_the_denominator(tmp_path: Path) -> None:
    facts = [{"tool_calls": 3, "invalid_calls": 1}, {"tool_calls": 0, "invalid_calls": 0}, {"invalid_calls": 2}]
    for split, rows in (("a", facts[:1]), ("b", facts[1:])):
        (tmp_path / split).mkdir()
        traces = [{"task_id": f"{split}{n}", "seed": 1, "facts": row} for n, row in enumerate(rows)]
        (tmp_path / split / "traces.jsonl").write_text("\n".join(map(json.dumps, traces)))
        (tmp_path / split / "scores.jsonl").write_text(
            "\n".join(json.dumps({"value": 1.0, "components": {}}) for _ in rows)
        )
    assert agent_scores(tmp_path)["valid_calls"] == {"a0/1": 0.75, "b0/1": 1.0, "b1/1": 0.0}
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no traces\.jsonl"):
        agent_scores(tmp_path / "empty")
