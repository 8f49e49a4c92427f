"""The file that traces are appended to as rollouts finish: blocks one after another, each with its length and checksum.

A process killed while it writes leaves a torn block at the end; a reader tells it and reads the rest, the next writer
cuts it off. A block damaged in the middle is skipped and named: what follows is found again by its mark.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from noria.harness.traces.blocks import pack, unpack
from noria.harness.traces.entry import Damage, Entry, TraceFileError

SUFFIX = ".blocks"
MARK = b"\x89noria-traces-1\n"  # not text, and not damaged by what changes line ends
HEAD = struct.Struct("<II")  # length of the packed block, its CRC-32
# Larger blocks pack better, smaller ones are read faster: one trace costs the unpacking of its block.
BLOCK_WEIGHT, BLOCK_TRACES = 1 << 18, 64


class TraceWriter:
    """Appends entries to `folder/name.blocks`: a new file or, with `resume`, behind what is there, since traces of two
    programs or policies in one file must be meant. One writer a file. Raises TraceFileError.

    What `append` was given is on the disk when it returns, and survives a kill. Several processes write several names.
    """

    def __init__(self, folder: Path, name: str = "traces", *, resume: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}{SUFFIX}"
        self._file: BinaryIO = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise TraceFileError(f"{self.path} is being written by another process; give another name") from error
        try:
            end = _end_to_write_at(self.path)
            if end and not resume:
                raise TraceFileError(
                    f"{self.path} holds traces already: name a new folder, or go on behind them with "
                    "TraceWriter(..., resume=True)"
                )
            self._file.truncate(end)
        except TraceFileError:
            self._file.close()
            raise

    def append(self, entries: Iterable[Entry]) -> None:
        for block in _blocks_of(entries):
            packed = pack(block)
            self._file.write(MARK + HEAD.pack(len(packed), zlib.crc32(packed)) + packed)
        self._file.flush()
        os.fsync(self._file.fileno())

    def rewind(self, step: int) -> None:
        """Drop all from the first entry labelled with `step` or a later one: a run that goes back makes them anew."""
        for start, _, block in walk(self.path):
            if isinstance(block, Damage) or not any(entry.labels.get("step", -1) >= step for entry in block):
                continue
            self._file.truncate(start)
            self.append(entry for entry in block if entry.labels.get("step", -1) < step)
            return

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def walk(path: Path, start: int = 0) -> Iterator[tuple[int, int, list[Entry] | Damage]]:
    """(first byte, byte after it, block) from `start` on. A torn block at the end is the last Damage, and its "byte
    after it" is where it begins: it may be whole the next time."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while start < size:
            end, packed = _packed_at(file, start, size)
            if packed is None:
                torn = f"the last block is torn, {size - start} bytes: its writer was stopped, or still writes"
                if end is None:
                    yield start, start, Damage(f"{path}, byte {start}", torn)
                    return
                yield start, end, Damage(f"{path}, byte {start}", f"{end - start} bytes are damaged and left out")
            else:
                assert end is not None
                yield start, end, _unpacked(path, start, packed)
            start = end


def read_block(path: Path, start: int) -> list[Entry]:
    """The block at byte `start`. Raises TraceFileError."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        _, packed = _packed_at(file, start, size)
    block = Damage(f"{path}, byte {start}", "no whole block") if packed is None else _unpacked(path, start, packed)
    if isinstance(block, Damage):
        raise TraceFileError(str(block))
    return block


def _unpacked(path: Path, start: int, packed: bytes) -> list[Entry] | Damage:
    try:
        return unpack(packed)
    except (ValueError, KeyError, TypeError, IndexError, zlib.error) as error:
        return Damage(f"{path}, byte {start}", f"written by another version? {type(error).__name__}: {error}")


def _packed_at(file: BinaryIO, start: int, size: int) -> tuple[int | None, bytes | None]:
    """(end, packed block). No block: where the next one is marked, or None where nothing follows any more."""
    file.seek(start)
    head = file.read(len(MARK) + HEAD.size)
    if head.startswith(MARK) and len(head) == len(MARK) + HEAD.size:
        length, checksum = HEAD.unpack(head[len(MARK) :])
        if start + len(head) + length <= size:
            packed = file.read(length)
            if zlib.crc32(packed) == checksum:
                return start + len(head) + length, packed
    return _next_mark(file, start + 1), None


def _next_mark(file: BinaryIO, start: int) -> int | None:
    """Where MARK is next, from byte `start` on; read in pieces that overlap by what a mark may be cut at."""
    file.seek(start)
    piece, before = file.read(1 << 20), start
    while piece:
        if (place := piece.find(MARK)) >= 0:
            return before + place
        rest = piece[-len(MARK) + 1 :]
        more = file.read(1 << 20)
        if not more:
            return None
        before, piece = before + len(piece) - len(rest), rest + more
    return None


def _whole_end(path: Path) -> int:
    """The byte after the last whole block."""
    end = 0
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while end < size:
            after, _ = _packed_at(file, end, size)
            if after is None:
                return end
            end = after
    return end


def _end_to_write_at(path: Path) -> int:
    """Behind what is there, without a block that was cut short. Raises TraceFileError for a file of another kind."""
    end = _whole_end(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(len(MARK))
        if not MARK.startswith(start):
            raise TraceFileError(f"{path} is no trace file of this version: nothing was written; give another name")
        file.seek(end)
        head = file.read(len(MARK) + HEAD.size)
    is_head = head.startswith(MARK) and len(head) == len(MARK) + HEAD.size
    whole = is_head and end + len(head) + HEAD.unpack(head[len(MARK) :])[0] <= size
    return size if whole else end  # a whole block that is damaged stays, for whoever can read it


def _blocks_of(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    block: list[Entry] = []
    weight = 0
    for entry in entries:
        block.append(entry)
        weight += _weight(entry)
        if weight >= BLOCK_WEIGHT or len(block) == BLOCK_TRACES:
            yield block
            block, weight = [], 0
    if block:
        yield block


def _weight(entry: Entry) -> int:
    """About the bytes that an entry unpacks to."""
    called = sum(
        4 * len(node.call.prompt_ids) + 8 * len(node.call.token_ids) for node in entry.trace.nodes if node.call
    )
    told = sum(len(node.message.content) + (_texts(node.use.files) if node.use else 0) for node in entry.trace.nodes)
    return called + told + (_texts(entry.task.hidden.get("files", {})) if entry.task else 0)


def _texts(files: Mapping[str, Any]) -> int:
    return sum(len(text) for text in files.values() if isinstance(text, str))
