"""Steps read artifacts and write one; an artifact exists whole or not at all, and its key says what made it."""

from noria.artifacts.errors import Damaged, Interrupted, StepFailed, StoreError, Unknown
from noria.artifacts.executor import Executor
from noria.artifacts.identity import Change, Numerics, canonical_json
from noria.artifacts.manifest import Manifest
from noria.artifacts.plan import Plan, PlannedStep, why
from noria.artifacts.progress import Progress
from noria.artifacts.step import Step, StepContext
from noria.artifacts.store import Artifact, Store

__all__ = [
    "Artifact",
    "Change",
    "Damaged",
    "Executor",
    "Interrupted",
    "Manifest",
    "Numerics",
    "Plan",
    "PlannedStep",
    "Progress",
    "Step",
    "StepContext",
    "StepFailed",
    "Store",
    "StoreError",
    "Unknown",
    "canonical_json",
    "why",
]
