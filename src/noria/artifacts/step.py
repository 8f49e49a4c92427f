"""A step: what turns input artifacts into one artifact, and what it is given to do so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from noria.artifacts.code import code_digest
from noria.artifacts.identity import Numerics, canonical, step_key

if TYPE_CHECKING:
    from pydantic import BaseModel

    from noria.artifacts.store import Artifact


class Report(Protocol):
    """Tell how far a step is; drawn as its live line. `unit` names what is counted: tokens, documents, tasks."""

    def __call__(self, done: float, total: float, unit: str = "", note: str = "") -> None: ...


class Log(Protocol):
    """Store metrics of one training step in the run database."""

    def __call__(self, step: int, **values: float) -> None: ...


class Event(Protocol):
    """Store one event with its evidence in the run database, e.g. an intervention of the guard."""

    def __call__(self, kind: str, message: str, **data: Any) -> None: ...


@dataclass(frozen=True)
class StepContext:
    """What a step's run function gets. It writes `content` and `observed`, which are empty at each start.

    `progress` survives kill -9 and Ctrl-C; it is empty on the first start, and what is found there was left by equal
    code for the same key. Write into it atomically: a kill may come at any moment.
    """

    config: Any
    inputs: Mapping[str, Artifact]
    content: Path
    observed: Path
    progress: Path
    step_name: str = ""
    stage: str = ""
    numerics: Numerics | None = None
    report: Report = lambda done, total, unit="", note="": None
    log: Log = lambda step, **values: None
    event: Event = lambda kind, message, **data: None


@dataclass(frozen=True, eq=False)
class Step:
    """One artifact to be made. `kind`, `version`, `config`, `numerics` and `inputs` are its identity; the rest is not.

    `name` is unique in a run; `run` returns deterministic metrics, which the manifest keeps. Raise `version` when the
    same configuration shall mean another content.
    """

    name: str
    stage: str
    kind: str
    version: int
    config: BaseModel
    run: Callable[[StepContext], Mapping[str, Any]]
    inputs: Mapping[str, Step | Artifact] = field(default_factory=dict)
    numerics: Numerics | None = None

    @cached_property
    def input_keys(self) -> dict[str, str]:
        return {role: upstream.key for role, upstream in self.inputs.items()}

    @cached_property
    def key(self) -> str:
        return step_key(self.kind, self.version, self.config, self.numerics, self.input_keys)

    @cached_property
    def code(self) -> str:
        """Digest of the sources that `run` can reach; recorded, not keyed."""
        return code_digest(self.run)

    @cached_property
    def canonical_config(self) -> Any:
        return canonical(self.config)
