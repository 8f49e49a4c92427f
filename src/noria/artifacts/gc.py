"""Free what nothing needs: first shown, then deleted.

Needed is what an alias points to or ever pointed to (a rollback may go there), what the next run of each recipe would
reuse or resume, what came from outside (nothing could make it again), and everything that those were made from. The
rest of the artifacts, half-done work and damaged/ can go.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from noria.artifacts.errors import StoreError, explained
from noria.artifacts.files import remove_tree, tree_size
from noria.artifacts.lineage import closure, marks
from noria.artifacts.store import Store


@dataclass(frozen=True)
class Garbage:
    """One thing that can go: an unneeded artifact, unneeded half-done work, or a damaged artifact set aside."""

    what: Literal["artifact", "work", "damaged"]
    name: str
    label: str
    bytes: int
    path: Path


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


def _garbage(store: Store) -> list[Garbage]:
    graph, problems = store.manifests()
    if problems:
        raise StoreError(
            f"nothing is freed while a manifest can't be read, for what it needs is unknown: {problems[0]}"
        )
    roots = {move.key for move in store.aliases.all_moves()} | store.runs.keys_needed().keys()
    forgotten = {mark.key for mark in marks(store)}
    outside = {key for key, manifest in graph.items() if manifest.outside and key not in forgotten}
    needed = closure(graph, roots | outside)
    found = [
        Garbage("artifact", key, f"{manifest.step} ({manifest.kind})", tree_size(path := store.artifacts / key), path)
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
