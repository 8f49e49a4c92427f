"""What a user means: a stage or step of a run, a model by folder, key or alias, what depends on an artifact."""

from __future__ import annotations

import atexit
import difflib
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from noria.artifacts import Manifest, Step, Store, StoreError, Unknown
from noria.artifacts.aliases import AliasMove
from noria.artifacts.lineage import Reached, closure, downstream, forget
from noria.recipe import OpenModelRecipe, Recipe
from noria.studio.live import stage_word
from noria.studio.output import notices


def run_name(recipe: Recipe | OpenModelRecipe, turn: int) -> str:
    """The name under which the store remembers a run: the recipe's, with the turn from the second on."""
    return recipe.run.name if turn == 1 else f"{recipe.run.name}.turn{turn}"


def select(steps: Sequence[Step], only: str | None, start: str | None, end: str | None = None) -> list[Step]:
    """The steps of `only`, of those from `start` to `end`; each a stage (4, s4, pretraining, s4_pretraining) or a step.

    "From" and "to" go by the order of the run: from the first step of a stage, to the last one of a stage.
    """
    chosen = list(steps)
    if end is not None:
        last = max(index for index, step in enumerate(steps) if step in _named(steps, end))
        chosen = chosen[: last + 1]
    if start is not None:
        first = min(index for index, step in enumerate(steps) if step in _named(steps, start))
        chosen = [step for step in chosen if step in steps[first:]]
        if not chosen:
            raise Unknown(f"--from {start} --to {end} leave no step")
    if only is not None:
        wanted = _named(steps, only)
        chosen = [step for step in chosen if step in wanted]
        if not chosen:
            raise Unknown(f"--only {only} and --from {start} leave no step")
    return chosen


def _named(steps: Sequence[Step], name: str) -> list[Step]:
    found = [step for step in steps if name in (step.name, *_spellings(step.stage))]
    if not found:
        stages = list(dict.fromkeys(stage_word(step.stage) for step in steps))
        names = [*sorted(stages), *(step.name for step in steps)]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise Unknown(f"no stage or step is named {name!r}.{hint} Stages: {', '.join(stages)}")
    return found


def _spellings(stage: str) -> tuple[str, ...]:
    """s4_pretraining may be written 4, s4, pretraining or s4_pretraining."""
    word = stage_word(stage)
    head = stage.removesuffix(f"_{word}")
    return stage, word, head, head.removeprefix("s")


def model_folder(reference: str, store: Store) -> Path:
    """The folder of a model: `reference` itself if it is one, else the content of the artifact that it names."""
    if Path(reference).is_dir():
        folder = Path(reference)
    elif is_artifact(store, reference) or not Path(reference).exists():
        key = store.resolve(reference)
        found = store.get(key)
        if found is None:
            raise StoreError(f"{reference} points to {key}, which is not in {store.root}: run its recipe again")
        folder = found.content
    else:
        folder = Path(reference)
    if not (folder / "config.json").is_file():
        raise Unknown(f"{reference} is no model: {folder} has no config.json")
    return _readable(folder)


def _readable(folder: Path) -> Path:
    """`folder`, or of one of `transformers` what noria makes of it, in a folder that goes when the process ends."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return folder  # whoever loads it says what is wrong
    if "architecture" in config or "model_type" not in config:
        return folder
    from noria.model.huggingface import import_model

    made = Path(tempfile.mkdtemp(prefix="noria-import-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    with notices().status(f"importing {folder}, for this once (noria import keeps it)"):
        import_model(folder, made)
    return made


def logged_user(user: str) -> str:
    """`user` as the traffic log spells it: a name becomes its digest; a digest, copied from the log, stays."""
    from noria.deployment.traffic import user_digest

    return user if re.fullmatch("[0-9a-f]{32}", user) else user_digest(user)


def reached_by_user(store: Store, name: str) -> Reached:
    """What a user's traffic reached. Raises Unknown, with the name as it was given, where no artifact holds it."""
    try:
        return downstream(store, logged_user(name), "user")
    except Unknown:
        raise Unknown(f"no artifact in {store.root} holds the user {name!r}") from None


@dataclass(frozen=True)
class ForgottenUser:
    """What became of a user: the artifacts and releases that were marked, and the requests in the traffic log."""

    name: str
    artifacts: tuple[Manifest, ...]
    releases: tuple[AliasMove, ...]
    log: str
    requests: int
    deleted: bool


def forget_user(store: Store, name: str, reason: str, log: Path, delete_rows: bool) -> ForgottenUser:
    """Mark what was made from a user's traffic, and count or delete the user's requests in the log.

    Raises Unknown where neither knows the user.
    """
    from noria.deployment.traffic import forget_user, requests_of_user

    if not name:
        raise Unknown("a user without a name is every anonymous one; give a name, or a digest from the log")
    requests = requests_of_user(log, name) if log.is_file() else 0
    try:
        reached = reached_by_user(store, name)
        forget(store, "user", logged_user(name), reason)
    except Unknown as error:
        if not requests:
            beside = f"; nor does {log}" if log.is_file() else f", and there is no traffic log {log}"
            raise Unknown(f"{error}{beside}") from None
        reached = Reached((), ())
    if delete_rows and requests:
        requests = forget_user(log, name)
    return ForgottenUser(name, reached.artifacts, reached.releases, str(log), requests, delete_rows and requests > 0)


def is_artifact(store: Store, reference: str) -> bool:
    """Whether a key, alias or step's name in the store is meant."""
    try:
        store.resolve(reference)
    except StoreError:
        return False
    return True


def dependents(store: Store, key: str) -> list[Manifest]:
    """All that was made from `key`, directly or not, oldest first."""
    graph, problems = store.manifests()
    if problems:
        raise StoreError(f"lineage needs every manifest, and {len(problems)} can't be read: {problems[0]}")
    later = [manifest for manifest in graph.values() if manifest.key != key and key in closure(graph, {manifest.key})]
    return sorted(later, key=lambda manifest: manifest.created)
