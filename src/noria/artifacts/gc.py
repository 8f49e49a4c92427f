"""Free what nothing needs: first shown, then deleted.

Needed is what an alias points to or ever pointed to (a rollback may go there), what the next run of each recipe would
reuse or resume, what came from outside (nothing could make it again), and everything that those were made from. The
rest of the artifacts, half-done work and damaged/ can go. What is marked to be forgotten is no longer needed for having
come from outside or for a former place of an alias; `held` says what else still needs it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from noria.artifacts.errors import StoreError, explained
from noria.artifacts.files import remove_tree, tree_size
from noria.artifacts.lineage import Graph, closure, marks
from noria.artifacts.manifest import Manifest
from noria.artifacts.store import Store


@dataclass(frozen=True)
class Garbage:
    """One thing that can go: an unneeded artifact, unneeded half-done work, or a damaged artifact set aside."""

    what: Literal["artifact", "work", "damaged"]
    name: str
    label: str
    bytes: int
    path: Path


@dataclass(frozen=True)
class Held:
    """An artifact that is marked to be forgotten but still needed; `by` says what for, e.g. "alias release/prod"."""

    key: str
    step: str
    marks: tuple[str, ...]
    by: tuple[str, ...]


def collect(store: Store, *, apply: bool = False) -> list[Garbage]:
    """What can go, largest first; with `apply` it is gone afterwards.

    Raises StoreError while a run is going on, or when a manifest can't be read: what it needs is unknown.
    """
    if not store.exists():
        return []
    with store.in_use(exclusive=True):
        found = sorted(_garbage(store), key=lambda garbage: -garbage.bytes)
        if apply:
            with explained(store.root):
                for garbage in found:
                    remove_tree(garbage.path, store.trash)
                if store.trash.exists():
                    shutil.rmtree(store.trash)
        return found


def held(store: Store) -> list[Held]:
    """What gc can't free although it is marked to be forgotten, and why. Raises StoreError as `collect` does."""
    if not store.exists():
        return []
    graph = _graph(store)
    holders: dict[str, list[str]] = {}
    for holder, roots in _roots(store, graph).items():
        for key in closure(graph, roots):
            holders.setdefault(key, []).append(holder)
    asked: dict[str, list[str]] = {}
    for mark in marks(store):
        asked.setdefault(mark.key, []).append(f"{mark.what} {mark.name}")
    return [
        Held(key, graph[key].step, tuple(asked[key]), tuple(holders[key]))
        for key in sorted(asked, key=lambda key: graph[key].created if key in graph else "")
        if key in holders
    ]


def _roots(store: Store, graph: Graph) -> dict[str, set[str]]:
    """What needs something -> the keys that it needs."""
    forgotten = {mark.key for mark in marks(store)}
    found: dict[str, set[str]] = {}
    for name in store.aliases.names():
        *former, now = [move.key for move in store.aliases.history(name)] or [""]
        found[f"alias {name}"] = {now, *former} - (forgotten - {now})
    for key, run in store.runs.keys_needed().items():
        found.setdefault(f"run {run}", set()).add(key)
    for key, manifest in graph.items():
        if manifest.outside and key not in forgotten:
            found[f"import {manifest.step} {key[:8]}"] = {key}
    return found


def _graph(store: Store) -> Graph:
    graph, problems = store.manifests()
    if problems:
        raise StoreError(
            f"nothing is freed while a manifest can't be read, for what it needs is unknown: {problems[0]}"
        )
    return graph


def _label(manifest: Manifest) -> str:
    return f"{manifest.step} ({manifest.kind})"


def _garbage(store: Store) -> list[Garbage]:
    graph = _graph(store)
    roots = set().union(*_roots(store, graph).values())
    needed = closure(graph, roots)
    found = [
        Garbage("artifact", key, _label(manifest), tree_size(path := store.artifacts / key), path)
        for key, manifest in graph.items()
        if key not in needed
    ]
    for folder in _folders(store.root / "work"):
        # Work on a key that the last run wants is resumed by the next; what is published needs no work any more.
        if folder.name not in roots or folder.name in graph:
            found.append(Garbage("work", folder.name, "half-done step", tree_size(folder), folder))
    for folder in _folders(store.damaged):
        found.append(Garbage("damaged", folder.name, "set aside", tree_size(folder), folder))
    return found


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []
