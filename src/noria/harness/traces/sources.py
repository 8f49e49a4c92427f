"""Where traces lie: files of blocks and files of JSON lines, behind one interface that an index can follow."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from noria.harness.traces.entry import Damage, Entry, TraceFileError
from noria.harness.traces.lines import SCORES, TASKS, TRACES, read_line, walk_lines
from noria.harness.traces.log import SUFFIX, read_block, walk

# JSON values: [byte of the block, place in it], or [byte in traces.jsonl, in tasks.jsonl, in scores.jsonl, line].
Position = list[int]


@dataclass(frozen=True)
class Found:
    """An entry or damage of a source. `after`: where to go on the next time."""

    position: Position
    after: Position
    value: Entry | Damage
    bytes_done: int


class Source(Protocol):
    @property
    def path(self) -> Path: ...

    @property
    def name(self) -> str:
        """Unique in a folder; what a list shows."""
        ...

    def size(self) -> int: ...

    def state(self) -> Any:
        """A JSON value that changes when something is written."""
        ...

    def continues(self, state: Any) -> bool:
        """Whether what was there at `state` is still there, so that reading may go on from where it was."""
        ...

    def walk(self, after: Position | None) -> Iterator[Found]: ...

    def read(self, position: Position) -> Entry:
        """Raises TraceFileError."""
        ...


def find_sources(folder: Path) -> list[Source]:
    """All trace files below `folder`, sorted by path. Raises TraceFileError where there is none."""
    if not folder.is_dir():
        raise TraceFileError(f"{folder} is no folder")
    found: list[Source] = []
    for path in sorted([*folder.rglob(f"*{SUFFIX}"), *folder.rglob(TRACES)]):
        name = path.relative_to(folder).as_posix()
        if path.suffix == SUFFIX:
            found.append(Blocks(path, name.removesuffix(SUFFIX)))
        elif _holds_traces(path):
            found.append(Lines(path, name.removesuffix(f"/{TRACES}").removesuffix(".jsonl")))
    if not found:
        raise TraceFileError(f"{folder} holds no traces: neither *{SUFFIX} nor {TRACES} with graphs of messages")
    return found


@dataclass(frozen=True)
class Blocks:
    path: Path
    name: str

    def size(self) -> int:
        return self.path.stat().st_size

    def state(self) -> Any:
        return _state([self.path], clock=False)

    def continues(self, state: Any) -> bool:
        return _continues([self.path], state)

    def walk(self, after: Position | None) -> Iterator[Found]:
        for start, end, block in walk(self.path, after[0] if after else 0):
            if isinstance(block, Damage):
                yield Found([start, 0], [end], block, end)
            else:
                for place, entry in enumerate(block):
                    yield Found([start, place], [end], entry, end)

    def read(self, position: Position) -> Entry:
        block = _block(self.path, position[0], self.path.stat().st_mtime_ns)
        if position[1] >= len(block):
            raise TraceFileError(f"{self.path}, byte {position[0]}: the block has no trace {position[1]}")
        return block[position[1]]


@dataclass(frozen=True)
class Lines:
    path: Path
    name: str

    def size(self) -> int:
        return self.path.stat().st_size

    def state(self) -> Any:
        return _state(self._paths(), clock=True)

    def continues(self, state: Any) -> bool:
        return _continues(self._paths(), state)

    def walk(self, after: Position | None) -> Iterator[Found]:
        first, line = ((after[0], after[1], after[2]), after[3]) if after else (None, 1)
        for begin, end, value in walk_lines(self.path, first, line):
            step = int(end != begin)
            yield Found([*begin, line], [*end, line + step], value, end[0])
            line += step

    def read(self, position: Position) -> Entry:
        first, second, third, line = position
        return read_line(self.path, (first, second, third), line)

    def _paths(self) -> list[Path]:
        return [self.path, self.path.with_name(TASKS), self.path.with_name(SCORES)]


@lru_cache(maxsize=4)
def _block(path: Path, start: int, changed: int) -> list[Entry]:
    """Traces that are read one after another lie in one block."""
    return read_block(path, start)


def _state(paths: list[Path], clock: bool) -> Any:
    """Of each file its size, a checksum of how it begins, and the time of its last change where `clock` is set: blocks
    are only ever appended, so that a copy of them is as good as they are."""
    there = [(path, path.stat()) for path in paths if path.exists()]
    return [[now.st_size, _beginning(path, now.st_size), now.st_mtime_ns if clock else 0] for path, now in there]


def _continues(paths: list[Path], state: Any) -> bool:
    there = [path for path in paths if path.exists()]
    if len(there) != len(state):
        return False
    for path, (size, beginning, changed) in zip(there, state, strict=True):
        now = path.stat()
        if now.st_size < size or (now.st_size == size and changed and now.st_mtime_ns != changed):
            return False
        if _beginning(path, size) != beginning:
            return False
    return True


def _beginning(path: Path, size: int) -> int:
    with path.open("rb") as file:
        return zlib.crc32(file.read(min(size, 4096)))


def _holds_traces(path: Path) -> bool:
    """Whether it is one of ours: distillation keeps token ids under the same name."""
    with path.open("rb") as file:
        first = file.readline(1 << 16)
    return not first or b'"nodes"' in first or path.with_name(TASKS).exists()
