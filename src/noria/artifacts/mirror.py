"""Copy artifacts to and from any fsspec URL (s3://, gs://, file://, memory://). The manifest is uploaded last, so that
a mirror, like the store, holds an artifact whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from noria.artifacts.errors import Damaged, StoreError, explain
from noria.artifacts.files import list_files
from noria.artifacts.lineage import upstream
from noria.artifacts.manifest import MANIFEST
from noria.artifacts.store import Artifact, Store


def push(store: Store, key: str, url: str, *, with_inputs: bool = False) -> list[str]:
    """Upload an artifact, with all it was made from if asked; the keys that were not there before."""
    if with_inputs:  # inputs first, so that what the mirror holds always has its lineage
        keys = [node.manifest.key for node in reversed(upstream(store, key))]
        return [pushed for other in keys for pushed in push(store, other, url)]
    filesystem, root = _open(url)
    target = f"{root}/artifacts/{key}"
    artifact = store.verify(key)
    if filesystem.exists(f"{target}/{MANIFEST}"):
        return []
    with _explained(f"the copy of {key} to {url}"):
        names = [name for name, _ in list_files(artifact.path) if name != MANIFEST]
        for name in (*names, MANIFEST):
            filesystem.makedirs(str(PurePosixPath(target, name).parent), exist_ok=True)
            filesystem.put_file(str(artifact.path / name), f"{target}/{name}")
    return [key]


def pull(store: Store, key: str, url: str) -> Artifact:
    """Download an artifact, check every hash, and publish it here; what is here already is not fetched."""
    filesystem, root = _open(url)
    target = f"{root}/artifacts/{key}"
    store.prepare()
    with store.in_use(), store.lock(key):
        if present := store.get(key):
            return present
        if not filesystem.exists(f"{target}/{MANIFEST}"):
            raise StoreError(f"there is no artifact {key} at {url}")
        work = store.work(key, "mirror")
        work.begin()
        with _explained(f"the copy of {key} from {url}"):
            for remote in filesystem.find(target):
                name = PurePosixPath(remote.lstrip("/")).relative_to(target.lstrip("/"))
                local = work.staging / name
                local.parent.mkdir(parents=True, exist_ok=True)
                filesystem.get_file(remote, str(local))
        try:
            work.adopt()
        except Damaged as damage:
            raise StoreError(f"{url} holds a damaged copy of {key}: {damage}") from damage
    return store.verify(key)


def _open(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise StoreError(f"{url} can't be used as a mirror: {error}") from error


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{what} stopped half-way: {explain(error, Path())}. Nothing is lost: copy it again"
        ) from error
