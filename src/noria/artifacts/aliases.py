"""Aliases such as release/prod: moving pointers with a history that is only ever appended to.

One file an alias, one JSON line a move; the last line is where it points. A line cut off by a crash is ignored.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from noria.artifacts.errors import StoreError, explained
from noria.artifacts.files import sync
from noria.artifacts.locks import hold

_NAME = re.compile(r"[a-z0-9_.-]+(/[a-z0-9_.-]+)*")


@dataclass(frozen=True)
class AliasMove:
    """One move of an alias. `verdict` is the key of the verdict that asked for it, empty for a move by hand."""

    name: str
    key: str
    reason: str
    time: str
    verdict: str = ""


@dataclass(frozen=True)
class Aliases:
    """The aliases in `folder`."""

    folder: Path

    def names(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix()[:-6] for path in self.folder.rglob("*.jsonl"))

    def history(self, name: str) -> list[AliasMove]:
        """All moves, oldest first; empty for a name that never was."""
        return [AliasMove(**line) for line in read_lines(self._file(name))]

    def current(self, name: str) -> str | None:
        moves = self.history(name)
        return moves[-1].key if moves else None

    def all_moves(self) -> Iterator[AliasMove]:
        for name in self.names():
            yield from self.history(name)

    def move(self, name: str, key: str, reason: str) -> None:
        """Point `name` at `key` (a release, a rollback). Moving it to where it is leaves no new line."""
        with self._locked(name):
            if self.current(name) != key:
                self._append(AliasMove(name, key, reason, now()))

    def promote_once(self, name: str, verdict: str, key: str, reason: str) -> bool:
        """Point `name` at `key` on behalf of a verdict, once for ever: False when that verdict was carried out before.

        So a rerun of the recipe that made the verdict never undoes a later rollback.
        """
        with self._locked(name):
            if any(move.verdict == verdict for move in self.history(name)):
                return False
            self._append(AliasMove(name, key, reason, now(), verdict))
            return True

    def _append(self, move: AliasMove) -> None:
        append_line(self._file(move.name), asdict(move))

    def _locked(self, name: str) -> Any:
        return hold(self.folder.parent / "locks" / f"alias-{name.replace('/', '-')}.lock")

    def _file(self, name: str) -> Path:
        if not _NAME.fullmatch(name) or ".." in name:
            raise StoreError(f"{name!r} is no alias name: use lower-case words joined by /, e.g. release/prod")
        return self.folder / f"{name}.jsonl"


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append one JSON line and flush it to disk, after cutting off what a crash left of an earlier one."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            file.seek(0)
            text = file.read()
            file.truncate(text.rfind(b"\n") + 1)
            file.write(json.dumps(line, ensure_ascii=False, sort_keys=True).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        sync(path.parent)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that `append_line` wrote."""
    if not path.exists():
        return []
    with explained(path):
        whole = path.read_bytes().split(b"\n")[:-1]
    try:
        return [json.loads(line) for line in whole]
    except ValueError as error:
        raise StoreError(f"{path} can't be read: {error}. Restore it from a backup or mirror") from error


def now() -> str:
    """The time in UTC, to the microsecond, so that texts sort as times do."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
