"""Writes traces in other formats, one block of them in memory at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from noria.harness.traces import Entry, Library
from noria.harness.traces.atif import to_atif
from noria.harness.traces.entry import to_line
from noria.harness.traces.inspect_log import write_inspect_log
from noria.harness.traces.lines import SCORES, TASKS, TRACES
from noria.studio.traces.standalone import standalone

if TYPE_CHECKING:
    from noria.data.chat_tokenizer import ChatTokenizer


def counted(library: Library, numbers: Sequence[int], report: Callable[[int, int], None]) -> Iterator[Entry]:
    for done, number in enumerate(numbers, 1):
        yield library.entry(number)
        report(done, len(numbers))


def write(format_: str, out: Path, entries: Iterable[Entry], title: str, model: str, tokens: bool) -> None:
    """`format_`: atif (a file a trace in the folder `out`), inspect (the file `out`) or jsonl (files in `out`)."""
    if format_ == "inspect":
        unfinished = out.with_suffix(".new")
        write_inspect_log(unfinished, entries, datetime.now(UTC), title, model, tokens)
        os.replace(unfinished, out)
        return
    out.mkdir(parents=True, exist_ok=True)
    if format_ == "jsonl":
        _write_lines(out, entries)
        return
    for number, entry in enumerate(entries, 1):
        text = json.dumps(to_atif(entry, model, tokens), ensure_ascii=False, indent=1)
        (out / f"{number:06d}.trajectory.json").write_text(text + "\n", encoding="utf-8")


def html(out: Path, library: Library, number: int, tokenizer: ChatTokenizer | None) -> None:
    pieces: Callable[[int], str] | None = (lambda token: tokenizer.decode([token])) if tokenizer else None
    page = standalone(library.entry(number), library.row(number), pieces)
    out.write_text(page, encoding="utf-8")


def _write_lines(out: Path, entries: Iterable[Entry]) -> None:
    """tasks.jsonl and scores.jsonl only where every trace has them: line n of each belongs to trace n."""
    missing: set[str] = set()
    with ExitStack() as stack:
        files = {name: stack.enter_context((out / name).open("wb")) for name in (TRACES, TASKS, SCORES)}
        for entry in entries:
            for name, value in ((TRACES, entry.trace), (TASKS, entry.task), (SCORES, entry.score)):
                if value is None:
                    missing.add(name)
                else:
                    files[name].write(to_line(asdict(value)))
    for name in missing:
        (out / name).unlink()
