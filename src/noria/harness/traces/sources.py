"""Where traces lie: files of blocks and files of JSON lines, behind one interface that an index can follow."""

from __future__ import annotations

import os
import zlib
from collections import Counter
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
PIECE = 4096  # bytes at either end of what was read that tell whether it is still there


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

    def read_until(self, after: Position | None) -> Any:
        """A JSON value that changes when what lies before `after` is written anew, and not when something is
        appended."""
        ...

    def continues(self, state: Any, after: Position | None, read: Any) -> bool:
        """Whether what was read until `after`, where it gave `state` and then `read`, is still there, so that reading
        may go on from `after`."""
        ...

    def walk(self, after: Position | None) -> Iterator[Found]: ...

    def read(self, position: Position) -> Entry:
        """Raises TraceFileError."""
        ...


def find_sources(folder: Path) -> list[Source]:
    """All trace files below `folder`, sorted by path. Raises TraceFileError where there is none."""
    if not folder.is_dir():
        raise TraceFileError(f"{folder} is no folder")
    paths = sorted([*folder.rglob(f"*{SUFFIX}"), *folder.rglob(TRACES)])
    files = [path for path in paths if path.suffix == SUFFIX or _holds_traces(path)]
    if not files:
        raise TraceFileError(f"{folder} holds no traces: neither *{SUFFIX} nor {TRACES} with graphs of messages")
    short = {path: _short_name(path.relative_to(folder).as_posix()) for path in files}
    times = Counter(short.values())
    named = {path: name if times[name] == 1 else path.relative_to(folder).as_posix() for path, name in short.items()}
    return [Blocks(path, name) if path.suffix == SUFFIX else Lines(path, name) for path, name in named.items()]


def _short_name(name: str) -> str:
    """Without what most files have in common: "traces" of traces.blocks, "heldout" of heldout/traces.jsonl."""
    return name.removesuffix(SUFFIX).removesuffix(f"/{TRACES}").removesuffix(".jsonl")


@dataclass(frozen=True)
class Blocks:
    path: Path
    name: str

    def size(self) -> int:
        return self.path.stat().st_size

    def state(self) -> Any:
        return [_ends(self.path, self.size())]  # without the clock: blocks are only appended, a copy is as good

    def read_until(self, after: Position | None) -> Any:
        return [_ends(self.path, after[0] if after else 0)]

    def continues(self, state: Any, after: Position | None, read: Any) -> bool:
        return self.read_until(after) == read

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
        there = [(path, path.stat()) for path in self._paths() if path.exists()]
        return [[*_ends(path, now.st_size), now.st_mtime_ns] for path, now in there]

    def read_until(self, after: Position | None) -> Any:
        there = [(path, place) for path, place in zip(self._paths(), after or [0, 0, 0], strict=False) if path.exists()]
        return [_ends(path, place) for path, place in there]

    def continues(self, state: Any, after: Position | None, read: Any) -> bool:
        now = self.state()
        edited = now != state and [one[0] for one in now] == [one[0] for one in state]  # by hand, to the same size
        return not edited and self.read_until(after) == read

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


def _ends(path: Path, size: int) -> list[int]:
    """Of the first `size` bytes their number, and checksums of how they begin and end; fewer where there are fewer."""
    size = max(0, size)
    with path.open("rb") as file:
        first = file.read(min(size, PIECE))
        file.seek(max(0, size - PIECE))
        last = file.read(min(size, PIECE))
        return [min(size, os.fstat(file.fileno()).st_size), zlib.crc32(first), zlib.crc32(last)]


def _holds_traces(path: Path) -> bool:
    """Whether it is one of ours: distillation keeps token ids under the same name."""
    with path.open("rb") as file:
        first = file.readline(1 << 16)
    return not first or b'"nodes"' in first or path.with_name(TASKS).exists()
