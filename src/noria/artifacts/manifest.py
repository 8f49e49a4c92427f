"""manifest.json: what an artifact is, how it was made, and the size and hash of each file under content/."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from noria.artifacts.errors import Damaged, StoreError
from noria.artifacts.files import list_files, write_atomic
from noria.artifacts.identity import Numerics, canonical_json, content_key, file_hash, step_key

SCHEMA = 1
MANIFEST = "manifest.json"
_RECORDED_PACKAGES = ("noria", "torch", "numpy", "pyarrow", "tokenizers")


@dataclass(frozen=True)
class FileEntry:
    """A file of content/: bytes, sha256, and the modification time that spares hashing it again."""

    size: int
    hash: str
    mtime_ns: int


@dataclass(frozen=True)
class Manifest:
    """`inputs` maps role to key; `files` maps a path under content/ to its entry; `code` is empty for imports.

    `step` and `stage` name what made it first; like `code`, `environment`, `metrics` and `created` they are no part of
    the key. `outside` says that the artifact came from outside and is keyed by its content.
    """

    key: str
    kind: str
    version: int
    config: Any
    inputs: Mapping[str, str]
    numerics: Mapping[str, Any] | None = None
    outside: bool = False
    step: str = ""
    stage: str = ""
    code: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    created: str = ""
    schema: int = SCHEMA

    @property
    def identity(self) -> dict[str, Any]:
        """What the key hashes, as one tree, so that two artifacts can be compared field by field."""
        return {
            "kind": self.kind,
            "version": self.version,
            "config": self.config,
            "numerics": self.numerics,
            "inputs": dict(self.inputs),
        }

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.files.values())

    def expected_key(self) -> str:
        """The key that the fields of this manifest give; equal to `key` unless one of them was altered."""
        if self.outside:
            return content_key(self.kind, self.config, {name: e.hash for name, e in self.files.items()}, self.inputs)
        numerics = Numerics(**self.numerics) if self.numerics else None
        return step_key(self.kind, self.version, self.config, numerics, self.inputs)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write it last: a folder with a manifest is whole."""
    body = asdict(manifest)
    body["checksum"] = _checksum(body)
    write_atomic(folder / MANIFEST, json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def read_manifest(folder: Path, key: str) -> Manifest:
    """Raises Damaged for a missing, broken or altered manifest, StoreError for one of a newer noria."""
    path = folder / MANIFEST
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        schema = body["schema"]
        if isinstance(schema, int) and schema > SCHEMA:
            raise StoreError(
                f"{path} has schema {schema}, made by a newer noria; this one reads up to {SCHEMA}. "
                "Nothing was changed: use that newer version, or another store with --store"
            )
        checksum = body.pop("checksum")
        if checksum != _checksum(body):
            raise ValueError("its checksum does not fit its text")
        files = {name: FileEntry(**entry) for name, entry in body.pop("files").items()}
        manifest = Manifest(files=files, **body)
    except FileNotFoundError:
        raise Damaged(key, path, "it has no manifest") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(key, path, f"its manifest can't be read: {error}") from error
    if manifest.key != key:
        raise Damaged(key, path, f"its manifest is that of {manifest.key}")
    return manifest


def describe_files(content: Path) -> dict[str, FileEntry]:
    """Each file under content/ with its size, hash and time."""
    return {
        name: FileEntry(status.st_size, file_hash(content / name), status.st_mtime_ns)
        for name, status in list_files(content)
    }


def check_files(folder: Path, manifest: Manifest, *, full: bool) -> None:
    """Raise Damaged where content/ is not what the manifest says: sizes and times always, hashes when `full`.

    A file of the right size but another time (a copied store) is hashed once and its time set back.
    """
    present = dict(list_files(folder / "content"))
    for name in sorted({*present, *manifest.files}):
        path = folder / "content" / name
        if name not in present:
            raise Damaged(manifest.key, path, "a file is missing")
        if name not in manifest.files:
            raise Damaged(manifest.key, path, "a file was added that it never had")
        status, entry = present[name], manifest.files[name]
        if status.st_size != entry.size:
            raise Damaged(manifest.key, path, f"a file changed: {status.st_size} bytes, published with {entry.size}")
        if full or status.st_mtime_ns != entry.mtime_ns:
            if file_hash(path) != entry.hash:
                raise Damaged(manifest.key, path, "a file changed: its hash is not the published one")
            if status.st_mtime_ns != entry.mtime_ns:
                os.utime(path, ns=(status.st_atime_ns, entry.mtime_ns))


def environment() -> dict[str, str]:
    """Versions that may matter to who compares two artifacts. Reads metadata only: importing torch takes seconds."""
    # Not platform.platform(): it starts a process to learn the name of the processor.
    system = f"{platform.system()} {platform.release()}"
    found = {"python": platform.python_version(), "platform": system, "machine": platform.machine()}
    for name in _RECORDED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def plain_metrics(value: Any) -> Any:
    """Metrics as JSON: array scalars become numbers; NaN and infinities become null, for JSON has no word for them."""
    if isinstance(value, Mapping):
        return {str(name): plain_metrics(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_metrics(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    raise TypeError(f"a metric is a {type(value).__name__}; metrics are numbers, strings, lists and dictionaries")


def _checksum(body: Mapping[str, Any]) -> str:
    import hashlib

    return hashlib.sha256(canonical_json(body).encode("utf-8", "surrogatepass")).hexdigest()[:16]
