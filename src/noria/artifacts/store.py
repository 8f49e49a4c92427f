"""The store: a folder of artifacts, found by key, alias or name of the step that made them.

store.json            schema of the layout
artifacts/<key>/      manifest.json, content/, observed/
work/<key>/           half-done steps (work.py)
aliases/, marks.jsonl pointers with history (aliases.py); what was asked to be forgotten (lineage.py)
trash/                what was being deleted when a kill came; the next run sweeps it
damaged/              what was set aside because it was no longer what was published
runs.sqlite           metrics and events of the runs (runs.py)
locks/
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from noria.artifacts.aliases import Aliases, now
from noria.artifacts.errors import Damaged, StoreError, Unknown, explained
from noria.artifacts.files import remove_tree, write_atomic
from noria.artifacts.identity import canonical, content_key, file_hash
from noria.artifacts.locks import hold
from noria.artifacts.manifest import Manifest, check_files, environment, read_manifest
from noria.artifacts.runs import RunDatabase
from noria.artifacts.work import Work

LAYOUT_SCHEMA = 1
_KEY = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Artifact:
    """A published folder: `content` is what it is, `observed` what was seen while making it."""

    key: str
    kind: str
    path: Path
    manifest: Manifest

    @property
    def content(self) -> Path:
        return self.path / "content"

    @property
    def observed(self) -> Path:
        return self.path / "observed"

    @property
    def metrics(self) -> Mapping[str, Any]:
        return self.manifest.metrics


class Store:
    """Artifacts under one root folder, by default $NORIA_STORE or ./store. Nothing is created before it is written."""

    def __init__(self, root: Path | str | None = None) -> None:
        self.root = Path(root or os.environ.get("NORIA_STORE") or "store").absolute()
        self.artifacts = self.root / "artifacts"
        self.damaged = self.root / "damaged"
        self.locks = self.root / "locks"
        self.trash = self.root / "trash"
        self.aliases = Aliases(self.root / "aliases")
        self._check_layout()

    @cached_property
    def runs(self) -> RunDatabase:
        self.prepare()
        return RunDatabase(self.root / "runs.sqlite")

    def exists(self) -> bool:
        """Whether anything was ever written here."""
        return (self.root / "store.json").exists()

    def prepare(self) -> None:
        """Make the folders; raises StoreError where that can't be done."""
        with explained(self.root):
            for folder in (self.artifacts, self.root / "work", self.locks, self.aliases.folder):
                folder.mkdir(parents=True, exist_ok=True)
            if not (self.root / "store.json").exists():
                write_atomic(self.root / "store.json", json.dumps({"schema": LAYOUT_SCHEMA}) + "\n")

    def get(self, key: str) -> Artifact | None:
        """The artifact, its files checked by size and time; None if there is none. Raises Damaged if one changed."""
        return self._open(key, full=False) if (self.artifacts / key).is_dir() else None

    def verify(self, key: str) -> Artifact:
        """As `get`, with every file hashed and the key computed again from the manifest."""
        self._require(key)
        artifact = self._open(key, full=True)
        if artifact.manifest.expected_key() != key:
            raise Damaged(key, artifact.path, "its key does not follow from its manifest")
        return artifact

    def manifest(self, key: str) -> Manifest:
        """The manifest alone, without a look at the files."""
        self._require(key)
        return read_manifest(self.artifacts / key, key)

    def resolve(self, reference: str) -> str:
        """The key that a user means by a key, the start of one (6 digits or more), an alias, or a step's name."""
        if target := self.aliases.current(reference) if re.fullmatch(r"[a-z0-9_./-]+", reference) else None:
            return target
        keys = self.keys()
        if reference in keys:
            return reference
        if re.fullmatch(r"[0-9a-f]{6,32}", reference):
            found = [key for key in keys if key.startswith(reference)]
            if len(found) > 1:
                raise Unknown(f"{reference} fits {len(found)} artifacts: {', '.join(found)}. Give more digits")
            if found:
                return found[0]
        made = [manifest for manifest in self.manifests()[0].values() if manifest.step == reference]
        if made:
            return max(made, key=lambda manifest: manifest.created).key
        if not self.exists():
            raise Unknown(f"{reference!r} can't be looked up: there is no store at {self.root}")
        known = ", ".join(self.aliases.names()) or "none"
        raise Unknown(f"{reference!r} is no artifact, alias or step in {self.root}. Aliases here: {known}")

    def keys(self) -> list[str]:
        if not self.artifacts.is_dir():
            return []
        return sorted(name for name in os.listdir(self.artifacts) if _KEY.fullmatch(name))

    def manifests(self) -> tuple[dict[str, Manifest], list[StoreError]]:
        """All readable manifests by key, and what is wrong with the others."""
        found, problems = {}, []
        for key in self.keys():
            try:
                found[key] = read_manifest(self.artifacts / key, key)
            except StoreError as error:
                problems.append(error)
        return found, problems

    def import_content(
        self,
        kind: str,
        files: Path | Mapping[str, Path],
        config: Any = None,
        *,
        inputs: Mapping[str, str] | None = None,
        metrics: Mapping[str, Any] | None = None,
        name: str = "",
    ) -> Artifact:
        """Copy a folder, a file, or named files in as an artifact keyed by content, `kind`, `config` and `inputs`.

        `inputs` (role -> key) says what it came from, e.g. the release whose traffic it is; lineage follows it.
        """
        config, inputs = canonical(config or {}), dict(inputs or {})
        with explained(self.root):
            sources = files if isinstance(files, Mapping) else _files_of(files)
            hashes = {path: file_hash(source) for path, source in sources.items()}
        key = content_key(kind, config, hashes, inputs)
        self.prepare()
        with self.in_use(), self.lock(key):
            if present := self.get(key):
                return present
            work = self.work(key, "import")
            work.begin()
            with explained(self.root):
                for path, source in sources.items():
                    target = work.staging / "content" / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, target)
                    if file_hash(target) != hashes[path]:
                        raise StoreError(f"{source} changed while it was imported; import a copy that stands still")
            manifest = Manifest(
                key=key,
                kind=kind,
                version=0,
                config=config,
                inputs=inputs,
                outside=True,
                step=name or kind,
                environment=environment(),
                metrics=metrics or {},
                created=now(),
            )
            work.publish(manifest)
        return Artifact(key, kind, self.artifacts / key, self.manifest(key))

    def alias(self, name: str) -> Artifact | None:
        """The artifact that an alias points to, None for an alias that does not exist."""
        key = self.aliases.current(name)
        return self.get(key) if key else None

    def move_alias(self, name: str, key: str, reason: str) -> None:
        self._require(key)
        self.aliases.move(name, key, reason)

    def promote_once(self, name: str, verdict_key: str, key: str, reason: str = "verdict: release") -> bool:
        """Carry out a release verdict; False when it was carried out before, whatever happened since."""
        self._require(key)
        return self.aliases.promote_once(name, verdict_key, key, reason)

    def set_aside(self, key: str) -> Path:
        """Move an artifact to damaged/, where nothing reads it but nothing is lost."""
        with self.lock(key), explained(self.damaged):
            self.damaged.mkdir(parents=True, exist_ok=True)
            target = self.damaged / f"{key}.{now().replace(':', '')}"
            (self.artifacts / key).rename(target)
            return target

    def remove(self, key: str) -> None:
        with self.lock(key), explained(self.artifacts):
            remove_tree(self.artifacts / key, self.trash)

    def lock(
        self, key: str, *, wait: bool = True, on_wait: Callable[[str], None] | None = None
    ) -> AbstractContextManager[None]:
        """The lock under which `key` is made, moved or removed. Its holder is told to `on_wait`."""
        return hold(self.locks / f"{key}.lock", wait=wait, on_wait=on_wait)

    def in_use(self, *, exclusive: bool = False) -> AbstractContextManager[None]:
        """Held, shared, by every run; exclusive, without waiting, by what must not meet a run (gc)."""
        return hold(self.locks / "store.lock", shared=not exclusive, wait=not exclusive)

    def work(self, key: str, code: str) -> Work:
        """Where `key` is half-done by the code of that digest; the folder need not exist."""
        return Work(key, self.root / "work" / key / code, self.artifacts, self.trash)

    def _open(self, key: str, *, full: bool) -> Artifact:
        path = self.artifacts / key
        with explained(path):
            manifest = read_manifest(path, key)
            check_files(path, manifest, full=full)
        return Artifact(key, manifest.kind, path, manifest)

    def _require(self, key: str) -> None:
        if not (self.artifacts / key).is_dir():
            raise Unknown(f"there is no artifact {key} in {self.root}")

    def _check_layout(self) -> None:
        marker = self.root / "store.json"
        if not marker.exists():
            return
        try:
            schema = json.loads(marker.read_text(encoding="utf-8"))["schema"]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f'{marker} can\'t be read: {error}. It should hold {{"schema": {LAYOUT_SCHEMA}}}'
            ) from error
        if schema > LAYOUT_SCHEMA:
            raise StoreError(
                f"{self.root} was made by a newer noria (schema {schema}; this one reads up to {LAYOUT_SCHEMA}). "
                "Nothing was changed: use that newer version, or another store with --store"
            )


def _files_of(path: Path) -> dict[str, Path]:
    if path.is_file():
        return {path.name: path}
    if not path.is_dir():
        raise StoreError(f"{path} does not exist; nothing was imported")
    return {item.relative_to(path).as_posix(): item for item in sorted(path.rglob("*")) if item.is_file()}
