"""What a run has finished: its artifacts by step, with what the report reads of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from noria.artifacts import Artifact, Manifest, Store, Unknown

FINISHED = ("made", "reused")
_TURN = re.compile(r"(?P<base>.+)\.turn(?P<turn>\d+)")


class Missing(LookupError):
    """A step that this run has not finished; the message names it."""


@dataclass(frozen=True)
class Run:
    """One run by name: the latest rows of its steps, and the artifacts that still follow from one another."""

    store: Store
    name: str
    rows: Mapping[str, Mapping[str, Any]]  # step -> its row in the run database
    last: Mapping[str, Any]  # the run's own row, of its latest start
    starts: int

    @property
    def base(self) -> str:
        """The name of turn 1."""
        found = _TURN.fullmatch(self.name)
        return found["base"] if found else self.name

    @property
    def turn(self) -> int:
        found = _TURN.fullmatch(self.name)
        return int(found["turn"]) if found else 1

    def artifact(self, step: str) -> Artifact:
        """What a step made. Raises Missing where it is not finished or no longer stored."""
        row = self.rows.get(step)
        found = self.store.get(row["key"]) if row and row["status"] in FINISHED else None
        if found is None:
            raise Missing(step)
        return found

    def has(self, step: str) -> bool:
        try:
            self.artifact(step)
        except Missing:
            return False
        return True

    def finished(self, *steps: str) -> list[str]:
        return [step for step in steps if self.has(step)]

    def read(self, step: str, name: str, *, observed: bool = False) -> Any:
        """A JSON file of a step's content; of what was observed beside it, None where there is none."""
        artifact = self.artifact(step)
        path = (artifact.observed if observed else artifact.content) / name
        if not path.is_file():
            if observed:
                return None
            raise Missing(f"{step} ({name})")
        return json.loads(path.read_text(encoding="utf-8"))

    def lines(self, step: str, name: str) -> list[dict[str, Any]]:
        """A JSON Lines file of a step's content; empty where it has none."""
        path = self.artifact(step).content / name
        if not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]

    def history(self, step: str) -> list[dict[str, float | None]]:
        """A row a training step: from the artifact where it keeps them, else what was observed."""
        artifact = self.artifact(step)
        path = artifact.content / "history.json"
        if path.is_file():
            return [{name: number(value) for name, value in row.items()} for row in json.loads(path.read_text())]
        rows: dict[int, dict[str, float | None]] = {}
        for name in self.store.runs.metric_names(artifact.key):
            for step_number, value in self.store.runs.curve(artifact.key, name):
                rows.setdefault(step_number, {})[name] = number(value)
        return [rows[step_number] for step_number in sorted(rows)]


def find_run(store: Store, name: str | None) -> Run:
    """The run of that name, or the latest. Raises Unknown where there is none."""
    runs = store.runs.runs() if store.exists() else []
    names = list(dict.fromkeys(run["name"] for run in reversed(runs)))
    if not names:
        raise Unknown(f"there is no run in {store.root} yet: `noria run recipes/nano.toml` makes one")
    if name is not None and name not in names:
        raise Unknown(f"no run is named {name!r} in {store.root}; there are: {', '.join(names)}")
    chosen = name or names[0]
    own = [run for run in runs if run["name"] == chosen]
    return Run(store, chosen, _consistent(store, own), own[-1], len(own))


def turns(store: Store, base: str) -> list[Run]:
    """Every turn of a run that was started, in order."""
    names = {run["name"] for run in store.runs.runs()}
    found = [name for name in names if name == base or ((m := _TURN.fullmatch(name)) and m["base"] == base)]
    return sorted((find_run(store, name) for name in found), key=lambda run: run.turn)


def _consistent(store: Store, runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows of the latest run, and of earlier ones (it may have been `--only` a stage) where their artifacts follow from
    what is already chosen."""
    manifests = store.manifests()[0]
    chosen: dict[str, dict[str, Any]] = {}
    for index, run in enumerate(reversed(runs)):
        refused: set[str] = set()
        for row in store.runs.steps(run["run"]):
            if row["step_name"] in chosen:
                if chosen[row["step_name"]]["key"] != row["key"]:
                    refused.add(row["key"])
            elif index == 0:
                chosen[row["step_name"]] = row
            elif row["status"] in FINISHED and _follows(manifests.get(row["key"]), refused):
                chosen[row["step_name"]] = row
            else:
                refused.add(row["key"])
    return dict(sorted(chosen.items(), key=lambda item: item[1]["position"]))


def _follows(manifest: Manifest | None, refused: set[str]) -> bool:
    return manifest is not None and not refused & set(manifest.inputs.values())


def number(value: Any) -> float | None:
    """A number as JSON can say it: null for what is not finite."""
    return None if value is None or not math.isfinite(value) else value


def finite(value: Any) -> Any:
    """A JSON value with null in place of NaN and infinities."""
    if isinstance(value, Mapping):
        return {str(name): finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return number(value) if isinstance(value, float) else value


def seconds_between(started: str | None, finished: str | None) -> float | None:
    if not started or not finished:
        return None
    return (datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds()


def thinned(values: list[Any], most: int = 240) -> list[Any]:
    """At most `most` of the values, evenly spaced, first and last included."""
    if len(values) <= most:
        return values
    return [values[round(index * (len(values) - 1) / (most - 1))] for index in range(most)]
