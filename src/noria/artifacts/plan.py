"""What a run would do and why: for each step reuse, resume or run, and which field changed since last time."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from noria.artifacts.aliases import AliasMove
from noria.artifacts.errors import Damaged
from noria.artifacts.identity import ABSENT, Change, changes
from noria.artifacts.lineage import Mark, marks_of
from noria.artifacts.manifest import Manifest
from noria.artifacts.step import Step
from noria.artifacts.store import Store

Action = Literal["reuse", "resume", "run"]


@dataclass(frozen=True)
class PlannedStep:
    """What would happen to one step. `changes` are fields against the last artifact of this step's name.

    `last_seconds` is how long a step of this name took when it was last made, by a run named `last_run`; None where it
    never was, or has nothing to do now."""

    name: str
    stage: str
    key: str
    action: Action
    reason: str
    changes: tuple[Change, ...] = ()
    code_changed: bool = False
    marks: tuple[Mark, ...] = ()
    last_seconds: float | None = None
    last_run: str = ""


@dataclass(frozen=True)
class Plan:
    """The steps in order, and the artifacts among them that are damaged."""

    steps: tuple[PlannedStep, ...]
    problems: tuple[Damaged, ...] = ()

    @property
    def to_run(self) -> tuple[PlannedStep, ...]:
        return tuple(step for step in self.steps if step.action != "reuse")


class Planner:
    """Explains steps against what the store holds. Manifests are read once, and only if something is to be made."""

    def __init__(self, store: Store, run_name: str) -> None:
        self.store = store
        self.run_name = run_name

    @cached_property
    def manifests(self) -> dict[str, Manifest]:
        return self.store.manifests()[0]

    def plan(self, steps: Sequence[Step]) -> Plan:
        planned, problems = [], []
        for step in steps:
            try:
                planned.append(self.explain(step))
            except Damaged as damage:
                problems.append(damage)
                reason = "its artifact is damaged"
                planned.append(PlannedStep(step.name, step.stage, step.key, "run", reason))
        return Plan(tuple(planned), tuple(problems))

    def explain(self, step: Step) -> PlannedStep:
        """Raises Damaged when the step's artifact is there but not what was published."""
        artifact = self.store.get(step.key)
        if artifact is not None:
            changed = artifact.manifest.code not in ("", step.code)
            marks = tuple(marks_of(self.store, step.key))
            reason = "unchanged" + ("; code changed since" if changed else "")
            return PlannedStep(step.name, step.stage, step.key, "reuse", reason, (), changed, marks)
        found = [] if self._was_made(step) else self._changes(step)
        resumes = self.store.work(step.key, step.code).has_progress()
        reason = self._reason(step, found)
        action: Action = "resume" if resumes else "run"
        seconds, run = self._last_time(step)
        fields = tuple(found or ())
        return PlannedStep(step.name, step.stage, step.key, action, reason, fields, last_seconds=seconds, last_run=run)

    def _last_time(self, step: Step) -> tuple[float | None, str]:
        found = self.store.runs.last_time(step.name, self.run_name) if self.store.exists() else None
        return found or (None, "")

    def _was_made(self, step: Step) -> bool:
        """True when this very key was published once and has been removed since."""
        return self.store.exists() and any(
            row["status"] in ("made", "reused") for row in self.store.runs.steps_of_key(step.key)
        )

    def _changes(self, step: Step) -> list[Change] | None:
        """None when no artifact of this step's name was ever made."""
        previous = self._previous(step)
        if previous is None:
            return None
        identity = {
            "kind": step.kind,
            "version": step.version,
            "config": step.canonical_config,
            "numerics": asdict(step.numerics) if step.numerics else None,
            "inputs": step.input_keys,
        }
        return changes(previous.identity, identity)

    def _previous(self, step: Step) -> Manifest | None:
        """The last artifact of this name: of the same recipe if it ever made one, else of any."""
        key = self.store.runs.latest_key(self.run_name, step.name) if self.store.exists() else None
        if key in self.manifests:
            return self.manifests[key]
        made = [manifest for manifest in self.manifests.values() if manifest.step == step.name]
        return max(made, key=lambda manifest: manifest.created, default=None)

    def _reason(self, step: Step, found: list[Change] | None) -> str:
        if found is None:
            return "never made"
        if not found:
            return "made before, no longer in the store"
        said, above = [], []
        digested: dict[str, list[str]] = {}
        for change in found:
            upstream = step.inputs.get(change.path.removeprefix("inputs.")) if "inputs." in change.path else None
            if isinstance(upstream, Step):
                above.append(upstream.name)  # its own line says why; the keys would only hide that
            elif names := _digested(change):
                parent, listed = names
                digested.setdefault(parent, []).extend(listed)
            else:
                said.append(str(change))
        said += [f"{parent}: {', '.join(names)} changed" for parent, names in digested.items()]
        if above:
            more = f" and {len(above) - 2} more" if len(above) > 3 else ""
            said.append(f"new {', '.join(above[:2] if more else above)}{more}")
        return "; ".join(said)


def _digested(change: Change) -> tuple[str, list[str]] | None:
    """(field, names in it that changed) where the values are digests, e.g. of graders: to read them tells nothing."""
    values = [value for value in (change.old, change.new) if value is not ABSENT and value is not None]
    if not values:
        return None
    if all(_is_digest(value) for value in values):
        parent, _, name = change.path.rpartition(".")
        return parent, [name]
    if all(isinstance(value, Mapping) and value and all(map(_is_digest, value.values())) for value in values):
        return change.path, sorted({name for value in values for name in value})
    return None


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{16,64}", value) is not None


@dataclass(frozen=True)
class Why:
    """Why an artifact is what it is. `history` has a row for each run that made or reused it."""

    manifest: Manifest
    inputs: tuple[tuple[str, str, str], ...]  # role, key, name of the step that made it
    history: tuple[dict[str, Any], ...]
    aliases: tuple[AliasMove, ...]
    marks: tuple[Mark, ...]


def why(store: Store, key: str) -> Why:
    """All that is known about how and why `key` was made, and who points to it."""
    manifest = store.manifest(key)
    names = {other: found.step for other, found in store.manifests()[0].items()}
    return Why(
        manifest,
        tuple((role, other, names.get(other, "(not in the store)")) for role, other in manifest.inputs.items()),
        tuple(store.runs.steps_of_key(key)),
        tuple(move for move in store.aliases.all_moves() if move.key == key),
        tuple(marks_of(store, key)),
    )
