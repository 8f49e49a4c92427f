"""Both turns of the wheel side by side, whatever the effect was."""

from __future__ import annotations

from typing import Any

from noria.evals.compare import compare_items
from noria.studio.report.finished import Missing, Run
from noria.studio.report.finished import turns as all_turns
from noria.studio.report.model_sections import CHAIN, measured


def turns(run: Run) -> dict[str, Any]:
    """Each turn's numbers, and paired differences between turns where both answered the same tasks."""
    runs = all_turns(run.store, run.base)
    if len(runs) < 2:
        raise Missing("a second turn")
    names = [f"{name}" for name in (*CHAIN, "agent_rl", "student")]
    differences = []
    for name in names:
        step = f"evaluate_{name}"
        done = [one for one in runs if one.has(step)]
        if len({one.artifact(step).manifest.inputs["registry"] for one in done}) != 1 or len(done) < 2:
            continue
        items = {f"turn {one.turn}": one.lines(step, "items.jsonl") for one in done}
        rows = compare_items(items, list(items))
        differences += [{"model": name, **row} for row in rows]
    return {"turns": [_turn(one, names) for one in runs], "differences": differences, "sources": _sources(runs)}


def _turn(run: Run, names: list[str]) -> dict[str, Any]:
    verdict = run.read("verdict", "verdict.json") if run.has("verdict") else {}
    heldout = run.read("base_model", "heldout.json") if run.has("base_model") else {}
    agents = run.read("agent_evaluation", "results.json") if run.has("agent_evaluation") else {}
    return {
        "turn": run.turn,
        "name": run.name,
        "status": run.last["status"],
        "documents": run.artifact("corpus").metrics["documents"] if run.has("corpus") else None,
        "loss": heldout.get("loss"),
        "loss_n": sum(heldout["tokens_by_source"].values()) if heldout else 0,
        "predicted": heldout.get("predicted"),
        "decision": verdict.get("decision"),
        "chosen": verdict.get("chosen"),
        "agent": [
            {"split": split, **row["success"]} for split, row in agents.get("models", {}).get("agent_rl", {}).items()
        ],
        "models": [
            {"model": name, "domains": measured(run, f"evaluate_{name}")["domains"]}
            for name in names
            if run.has(f"evaluate_{name}")
        ],
    }


def _sources(runs: list[Run]) -> list[dict[str, Any]]:
    """Weight and bits per byte of each source in each turn."""
    weights = [run.read("shards", "shards.json")["weights"] if run.has("shards") else {} for run in runs]
    bits = [run.read("base_model", "heldout.json")["bits_per_byte"] if run.has("base_model") else {} for run in runs]
    names = sorted({name for turn in weights for name in turn})
    return [
        {
            "source": name,
            "turns": [
                {"turn": run.turn, "weight": weight.get(name), "bits_per_byte": bit.get(name)}
                for run, weight, bit in zip(runs, weights, bits, strict=True)
            ],
        }
        for name in names
    ]
