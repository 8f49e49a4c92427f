"""All numbers of the report as one JSON value: the page shows nothing that is not in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from noria.artifacts import Store
from noria.studio.report import (
    ablations_section,
    agent_section,
    data_sections,
    model_sections,
    release_sections,
    training_sections,
)
from noria.studio.report.finished import FINISHED, Missing, Run, find_run, finite, seconds_between
from noria.studio.report.turns_section import turns

SCHEMA = 1
Section = Callable[[Run], Any]
SECTIONS: Mapping[str, tuple[str, Section]] = {
    "raw_data": ("Raw data", data_sections.raw_data),
    "funnel": ("Data engineering", data_sections.funnel),
    "mixture": ("Mixture", training_sections.mixture),
    "system": ("System recipe", training_sections.system),
    "pretraining": ("Pretraining", training_sections.pretraining),
    "posttraining": ("Post-training", model_sections.posttraining),
    "ablations": ("Ablations", ablations_section.ablations),
    "rewards": ("Reward monitors", model_sections.rewards),
    "graders": ("Graders", model_sections.graders),
    "samples": ("Samples", model_sections.samples),
    "agent": ("Agent harness", agent_section.agent),
    "distillation": ("Distillation", model_sections.distillation),
    "release": ("Release", release_sections.release),
    "traffic": ("Loop A: traffic", release_sections.traffic),
    "loop_b": ("Loop B: mixture", release_sections.loop_b),
    "turns": ("Turns", turns),
}


def data(store: Store, run_name: str | None = None) -> dict[str, Any]:
    """What `noria report --json` prints. A section whose steps are not finished is null and named in `missing`."""
    run = find_run(store, run_name)
    found: dict[str, Any] = {}
    missing: list[dict[str, str]] = []
    for name, (title, section) in SECTIONS.items():
        try:
            found[name] = section(run)
        except Missing as lacking:
            found[name] = None
            missing.append({"section": name, "title": title, "needs": str(lacking)})
    chain = data_sections.chain(run)
    steps = [step for stage in chain for step in stage["steps"]]
    head = {
        "schema": SCHEMA,
        "run": {
            "name": run.name,
            "base": run.base,
            "turn": run.turn,
            "status": run.last["status"],
            "started": run.last["started"],
            "finished": run.last["finished"],
            "seconds": seconds_between(run.last["started"], run.last["finished"]),
            "starts": run.starts,
            "open_model": any(stage["stage"] == data_sections.OPEN_MODEL for stage in chain),
            "steps": len(steps),
            "finished_steps": sum(step["status"] in FINISHED for step in steps),
            "seconds_of_steps": sum(step["seconds"] or 0.0 for step in steps),
            "environment": _environment(run),
        },
        "missing": missing,
        "chain": chain,
    }
    return finite(head | found)


def _environment(run: Run) -> dict[str, str]:
    """Of the machine that made the last finished step."""
    done = [name for name in reversed(list(run.rows)) if run.has(name)]
    return dict(run.artifact(done[0]).manifest.environment) if done else {}
