"""All traces below a folder, open for questions: `Library(folder).rows(Query(outcome="truncated"))`."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from noria.harness.traces.entry import Damage, Entry, TraceFileError
from noria.harness.traces.index import Index, Query
from noria.harness.traces.sources import Source, find_sources
from noria.types import OUTCOMES, digest

INDEX = "index.sqlite"
STATUSES = ("graded", "failed", "none")
MOST = 1 << 62  # SQLite counts no further


class Library:
    """Read-only; several threads may ask. `index` names the index file.

    Without it, it is `folder/index.sqlite` where a TraceWriter's owner had one made there with `build_index` and
    nothing was written since, else one in the user's cache (XDG_CACHE_HOME). The first time it reads every trace;
    `report(bytes done, bytes in all)` tells how far it is. Raises TraceFileError where there are no traces, or another
    process keeps the index to itself.
    """

    def __init__(
        self, folder: Path, index: Path | None = None, report: Callable[[int, int], None] | None = None
    ) -> None:
        self.folder = folder
        self._sources = {source.name: source for source in find_sources(folder)}
        self._lock = threading.Lock()
        self._facets: dict[str, dict[str, int]] | None = None
        beside = folder / INDEX
        self._index = Index(
            index or (beside if _is_current(beside, list(self._sources.values())) else cached_index(folder))
        )
        self.refresh(report)

    def refresh(self, report: Callable[[int, int], None] | None = None) -> None:
        """Catch up with what was written meanwhile, in new files too."""
        self._sources = {source.name: source for source in find_sources(self.folder)}
        with self._lock:
            sources = list(self._sources.values())
            if not self._index.is_current(sources):
                self._index.catch_up(sources, report)
                self._facets = None

    def close(self) -> None:
        self._index.close()

    def __enter__(self) -> Library:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self, query: Query) -> None:
        """Raises ValueError where the query asks for a value that no trace here has, with those that there are: it may
        be misspelt. Outcomes and statuses that a trace can have are never refused."""
        possible = {"outcome": OUTCOMES, "status": STATUSES}
        if not self.count():
            return
        for name, counted in self.facets().items():
            wanted, known = getattr(query, name), sorted({*counted, *possible.get(name, ())} - {""})
            if wanted and wanted not in known:
                raise ValueError(f"no trace here has {name} {wanted!r}; there are: {', '.join(known) or 'none'}")

    def count(self, query: Query | None = None) -> int:
        with self._lock:
            return self._index.count(query or Query())

    def rows(self, query: Query | None = None, limit: int = 50, offset: int = 0) -> list[dict[str, Any]]:
        """What a list shows of each trace: index.ROW_FIELDS. No trace is read for it."""
        with self._lock:
            return self._index.rows(query or Query(), limit, offset)

    def numbers(self, query: Query | None = None, limit: int = 1_000_000) -> list[int]:
        """The traces that the query finds, in its order."""
        with self._lock:
            return self._index.numbers(query or Query(), limit, 0)

    def entries(self, query: Query | None = None) -> Iterator[tuple[int, Entry]]:
        """(number, entry) of all that the query finds; one block in memory at a time."""
        for number in self.numbers(query):
            yield number, self.entry(number)

    def entry(self, number: int) -> Entry:
        """Raises TraceFileError where there is none of that number, or it can't be read any more."""
        with self._lock:
            position = self._index.position(number) if number < MOST else None
        if position is None:
            raise TraceFileError(f"{self.folder} has no trace number {number}")
        name, place = position
        return self._sources[name].read(place)

    def row(self, number: int) -> dict[str, Any]:
        with self._lock:
            row = self._index.row(number) if number < MOST else None
        if row is None:
            raise TraceFileError(f"{self.folder} has no trace number {number}")
        return row

    def find(self, name: str) -> int:
        """The number of the trace that `name` means: a number, or the start of an id. Raises TraceFileError."""
        if name.isdecimal() and len(name) < 12:
            return self.row(int(name))["number"]
        with self._lock:
            found = self._index.numbers_of(name) if name else []
        if len(found) != 1:
            what = (
                "no trace" if not found else f"{len(found)} traces or more (numbers {', '.join(map(str, found[:5]))})"
            )
            raise TraceFileError(f"{what} in {self.folder} whose id begins with {name!r}")
        return found[0]

    def facets(self) -> dict[str, dict[str, int]]:
        """See Index.facets; counted once for what the index holds."""
        with self._lock:
            if self._facets is None:
                self._facets = self._index.facets()
            return self._facets

    def damages(self) -> list[Damage]:
        with self._lock:
            return self._index.damages()


def build_index(folder: Path) -> None:
    """Make `folder/index.sqlite`, so that whoever opens the folder need not wait."""
    with Library(folder, folder / INDEX):
        pass


def cached_index(folder: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "noria" / "traces" / f"{digest(str(folder.resolve()))}.sqlite"


def _is_current(beside: Path, sources: Sequence[Source]) -> bool:
    """Whether there is an index beside the traces that needs no change: it may be a part of a published artifact."""
    if not beside.is_file():
        return False
    try:
        index = Index(beside, make=False)
    except (sqlite3.Error, TraceFileError):
        return False
    try:
        return index.is_current(sources)
    except (sqlite3.Error, TraceFileError):
        return False
    finally:
        index.close()
