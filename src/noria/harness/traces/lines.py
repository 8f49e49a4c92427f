"""Traces as JSON Lines: tasks.jsonl, traces.jsonl and scores.jsonl, a trace a line, for people, `jq` and small sets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from noria.harness.traces.entry import Damage, Entry, Recorded, TraceFileError, score_from, to_line
from noria.harness.traces.log import SUFFIX, walk
from noria.types import Score, Task, Trace, task_from_json

T = TypeVar("T")
TASKS, TRACES, SCORES = "tasks.jsonl", "traces.jsonl", "scores.jsonl"
_NAMES = (TRACES, TASKS, SCORES)  # in the order of an entry's fields
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, IndexError)


def save(folder: Path, recorded: Recorded) -> None:
    """tasks.jsonl, traces.jsonl and scores.jsonl in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / TASKS, (to_line(asdict(task)) for task in recorded.tasks))
    _write(folder / TRACES, (to_line(asdict(trace)) for trace in recorded.traces))
    _write(folder / SCORES, (to_line(asdict(score), (", ", ": ")) for score in recorded.scores))


def load(folder: Path) -> Recorded:
    """What `save`, or a TraceWriter with tasks and scores, wrote. Raises TraceFileError, FileNotFoundError.

    Unlike `walk_lines` it takes a last line without its newline where that is whole: nobody writes to it any more.
    """
    found = sorted(folder.glob(f"*{SUFFIX}"))
    if found and (folder / TRACES).exists():
        raise TraceFileError(
            f"{folder} holds traces twice, in {found[0].name} and in {TRACES}: move those that are not meant elsewhere"
        )
    if not found:
        return Recorded(
            tuple(_read(folder / TASKS, _task)),
            tuple(_read(folder / TRACES, _trace)),
            tuple(_read(folder / SCORES, _score)),
        )
    tasks: list[Task] = []
    traces: list[Trace] = []
    scores: list[Score] = []
    for path in found:
        for _, _, block in walk(path):
            if isinstance(block, Damage):
                raise TraceFileError(str(block))
            for entry in block:
                if entry.task is None or entry.score is None:
                    raise TraceFileError(f"{path}: trace {entry.trace.id} is kept without a task or a score")
                tasks.append(entry.task)
                traces.append(entry.trace)
                scores.append(entry.score)
    return Recorded(tuple(tasks), tuple(traces), tuple(scores))


# Where one entry's lines begin in traces.jsonl, tasks.jsonl and scores.jsonl; -1 where there is no such file.
Offsets = tuple[int, int, int]


def walk_lines(path: Path, start: Offsets | None = None, line: int = 1) -> Iterator[tuple[Offsets, Offsets, Any]]:
    """(begin, end, Entry or Damage) of each line of traces.jsonl at `path` and of the files beside it.

    A last line without its newline is torn, and so is one that a file beside it does not have: the last Damage, whose
    end is its begin, since it may be whole the next time. A line that is whole and can't be read is a Damage, and what
    follows is read.
    """
    with ExitStack() as stack:
        files = [_open(stack, path.with_name(name)) for name in _NAMES]
        for file, offset in zip(files, start or (), strict=False):
            if file is not None:
                file.seek(offset)
        for number in _count_from(line):
            begin = _offsets(files)
            texts = [None if file is None else file.readline() for file in files]
            if not texts[0]:
                return
            torn = (name for name, text in zip(_NAMES, texts, strict=True) if text is not None and text[-1:] != b"\n")
            if name := next(torn, None):
                reason = "the last line is torn: its writer was stopped, or still writes"
                yield begin, begin, Damage(f"{path.with_name(name)}:{number}", reason)
                return
            yield begin, _offsets(files), _entry(path, number, texts)


def read_line(path: Path, begin: Offsets, line: int) -> Entry:
    """The entry whose lines begin there. Raises TraceFileError."""
    _, _, found = next(
        walk_lines(path, begin, line), (None, None, Damage(f"{path}, byte {begin[0]}", "no line begins here"))
    )
    if isinstance(found, Damage):
        raise TraceFileError(str(found))
    return found


def _entry(path: Path, number: int, texts: list[bytes | None]) -> Entry | Damage:
    values: list[Any] = []
    for name, text, parse in zip(_NAMES, texts, (_trace, _task, _score), strict=True):
        try:
            values.append(None if text is None else parse(text))
        except UNREADABLE as error:
            return Damage(f"{path.with_name(name)}:{number}", f"{type(error).__name__}: {error}")
    return Entry(*values)


def _open(stack: ExitStack, path: Path) -> BinaryIO | None:
    return stack.enter_context(path.open("rb")) if path.exists() else None


def _offsets(files: list[BinaryIO | None]) -> Offsets:
    first, second, third = (-1 if file is None else file.tell() for file in files)
    return first, second, third


def _count_from(number: int) -> Iterator[int]:
    while True:
        yield number
        number += 1


def _write(path: Path, lines: Iterable[bytes]) -> None:
    with path.open("wb") as stream:
        stream.writelines(lines)


def _read(path: Path, parse: Callable[[bytes], T]) -> Iterator[T]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                yield parse(line)
            except UNREADABLE as error:
                raise TraceFileError(f"{path}:{number}: {type(error).__name__}: {error}") from error


def _text(line: bytes) -> str:
    return line.decode("utf-8", "surrogatepass")


def _task(line: bytes) -> Task:
    return task_from_json(_text(line))


def _trace(line: bytes) -> Trace:
    return Trace.from_json(_text(line))


def _score(line: bytes) -> Score:
    return score_from(json.loads(_text(line)))
