"""What each part of post-training is worth: the arms of an ablations recipe over its seeds, from this run's base."""

from __future__ import annotations

from typing import Any

from noria.studio.report.finished import Missing, Run, find_run


def ablations(run: Run) -> dict[str, Any]:
    """Mean accuracy of every arm by domain with t intervals over seeds, and the first arm minus each other, paired by
    seed. The arms may be a run of their own (recipes/ablations.toml): the latest from the same base model is taken."""
    source = run if run.has("ablations") else _from_the_same_base(run)
    body = source.read("ablations", "ablations.json")
    domains = [name for name in body["means"][body["first"]] if name != "all"]
    return {
        "run": source.name,
        "seeds": body["seeds"],
        "first": body["first"],
        "domains": [
            {"domain": name, "arms": [{"arm": arm, **row[name]} for arm, row in body["means"].items()]}
            for name in ("all", *domains)
        ],
        "differences": [
            {"arm": arm, "domain": name, **row[name]}
            for arm, row in body["first_minus"].items()
            for name in ("all", *domains)
        ],
    }


def _from_the_same_base(run: Run) -> Run:
    if run.has("base_model"):
        base = run.artifact("base_model").key
        names = dict.fromkeys(row["name"] for row in reversed(run.store.runs.runs()))
        for name in names:
            other = find_run(run.store, name)
            if other.has("ablations") and other.artifact("base_model").key == base:
                return other
    raise Missing("ablations")
