"""What makes two artifacts the same: the key, the canonical form of what it hashes, and how two identities differ."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Any


@dataclass(frozen=True)
class Numerics:
    """What changes numbers without being a choice of the recipe; part of the key of steps that compute with floats."""

    dtype: str = "float32"
    threads: int = 1
    world_size: int = 1
    compile: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Change:
    """One field that differs between two identities, e.g. config.learning_rate: 0.02 -> 0.01."""

    path: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.path}: {_short(self.old)} -> {_short(self.new)}"


def canonical_json(value: Any) -> str:
    """The one spelling of `value`: sorted keys, no spaces, shortest floats. Refuses what has no stable spelling."""
    return json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical(value: Any, where: str = "config") -> Any:
    """`value` as plain JSON values. Raises TypeError, with the field, for paths, NaN and the unspellable."""
    if hasattr(value, "model_dump"):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    elif is_dataclass(value) and not isinstance(value, type):
        value = {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{where} is {value}; a configuration needs finite numbers")
        # Equal numbers are spelled alike: 1.0 as 1 (pydantic keeps a default `1` of a float field as it is), -0.0 as 0.
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise TypeError(f"{where} has the key {name!r}; keys must be strings")
        return {name: canonical(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, Set):
        return sorted((canonical(item, where) for item in value), key=canonical_json)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [canonical(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, PurePath):
        raise TypeError(f"{where} is a path; where a file lies is no identity: import the file as an artifact instead")
    raise TypeError(f"{where} is a {type(value).__name__}, which has no stable spelling; use JSON values")


def step_key(kind: str, version: int, config: Any, numerics: Numerics | None, inputs: Mapping[str, str]) -> str:
    """The key of what a step makes: 32 hex digits of sha256 over everything that can change its content."""
    return _hash(
        {
            "kind": kind,
            "version": version,
            "config": canonical(config),
            "numerics": asdict(numerics) if numerics else None,
            "inputs": dict(inputs),
        }
    )


def content_key(kind: str, config: Any, hashes: Mapping[str, str], inputs: Mapping[str, str]) -> str:
    """The key of what comes from outside: its kind, what is said of it, and the hash of each file."""
    return _hash({"kind": kind, "config": canonical(config), "content": dict(hashes), "inputs": dict(inputs)})


def file_hash(path: Path) -> str:
    """sha256 of a file, in hex. Cryptographic because keys of outside content rest on it; 0.5-2 GB/s is enough."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def changes(old: Any, new: Any, path: str = "") -> list[Change]:
    """The fields that differ between two canonical values, deepest path first named, in the order of the paths."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for name in sorted({*old, *new}):
            found += changes(old.get(name, ABSENT), new.get(name, ABSENT), f"{path}.{name}" if path else name)
        return found
    # True == 1 in Python, but not in JSON.
    return [] if type(old) is type(new) and old == new else [Change(path, old, new)]


class _Absent:
    def __repr__(self) -> str:
        return "(absent)"


ABSENT = _Absent()


def _hash(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _short(value: Any) -> str:
    text = repr(value) if value is ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
