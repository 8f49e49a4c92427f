"""The index over trace files: one SQLite file with a row a trace, its tools, and the words of its messages.

It holds nothing that is not in the trace files, can be deleted at any time, and catches up with files that grow. A list
of 100,000 traces is served from it page by page without reading a trace.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from noria.harness.traces.entry import Damage, Entry, TraceFileError
from noria.harness.traces.sources import Found, Position, Source
from noria.types import Trace

VERSION = 2
WAIT_SECONDS = 60  # for another process that writes the index
SNIPPET = 160  # characters of the question and of the answer that a list shows
Order = Literal["number", "score", "step", "turns", "tokens", "tool_calls"]
ORDERS: tuple[Order, ...] = ("number", "score", "step", "turns", "tokens", "tool_calls")

_SCHEMA = f"""
PRAGMA user_version = {VERSION};
CREATE TABLE sources (number INTEGER PRIMARY KEY, name TEXT, state TEXT, position TEXT, read TEXT);
CREATE TABLE traces (
  number INTEGER PRIMARY KEY, source INTEGER, family TEXT, outcome TEXT, harness TEXT, status TEXT, score REAL,
  step INTEGER, turns INTEGER, tokens INTEGER, tool_calls INTEGER, invalid_calls INTEGER, agents INTEGER, id TEXT);
CREATE TABLE shown (
  number INTEGER PRIMARY KEY, task TEXT, question TEXT, answer TEXT, components TEXT, labels TEXT, sandbox TEXT,
  position TEXT);
CREATE TABLE tools (tool TEXT, number INTEGER, PRIMARY KEY (tool, number)) WITHOUT ROWID;
CREATE TABLE damages (source INTEGER, place TEXT, reason TEXT);
CREATE VIRTUAL TABLE words USING fts5(text, content='', detail='none', columnsize=0);
CREATE INDEX by_id ON traces (id);
CREATE INDEX by_score ON traces (score, number);
CREATE INDEX by_step ON traces (step, number);
CREATE INDEX by_turns ON traces (turns, number);
CREATE INDEX by_tokens ON traces (tokens, number);
CREATE INDEX by_tool_calls ON traces (tool_calls, number);
CREATE INDEX by_facets ON traces (family, outcome, harness, status, source);
"""
_FACTS = ("step", "turns", "tokens", "tool_calls", "invalid_calls", "agents")
_SHOWN = ("task", "question", "answer", "components", "labels", "sandbox")
ROW_FIELDS = ("number", "source", "family", "outcome", "harness", "status", "score", *_FACTS, "id", *_SHOWN)


@dataclass(frozen=True)
class Query:
    """Which traces. Empty fields ask nothing. `text`: words that all occur, each may go on ("val" finds "value")."""

    source: str = ""
    family: str = ""
    outcome: str = ""
    harness: str = ""
    tool: str = ""
    status: str = ""  # graded, failed, none
    text: str = ""
    score_min: float | None = None
    score_max: float | None = None
    step_min: int | None = None
    step_max: int | None = None
    order: Order = "number"
    descending: bool = False

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"order {self.order!r}: give one of {', '.join(ORDERS)}")


class Index:
    """An open index. Methods may be called from one thread at a time."""

    def __init__(self, path: Path, make: bool = True) -> None:
        """Open, or make, the index at `path`. One that is damaged or of another version is made anew, without `make`
        refused; one that another process holds for longer than `WAIT_SECONDS`, or that can't be opened, stays. Raises
        TraceFileError."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._told():
            if not self._open(make):
                if not make:
                    raise TraceFileError(f"{path}: no index of this version")
                path.unlink()
                self._open()

    def _open(self, make: bool = True) -> bool:
        """Whether what is there is an index of this version; where there is none, one is made if `make`."""
        self.db = sqlite3.connect(self.path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            # Derived data: after a power cut it is made anew, so it need not wait for the disk.
            self.db.execute("PRAGMA synchronous = OFF")
            if make and self._version() == 0:
                self.db.execute("BEGIN IMMEDIATE")  # and look again: another process may just have made it
                if self._version() == 0 and not self.db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
                    for statement in _SCHEMA.split(";"):
                        self.db.execute(statement)
                self.db.execute("COMMIT")
            if self._version() == VERSION:
                return True
        except sqlite3.DatabaseError as error:
            self.db.close()
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise
        self.db.close()
        return False

    def _version(self) -> int:
        return self.db.execute("PRAGMA user_version").fetchone()[0]

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What SQLite says of a file that is whole, but can't be had, as TraceFileError."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise TraceFileError(
                    f"{self.path}: another process writes this index since more than {WAIT_SECONDS} seconds; "
                    "try again when it is done"
                ) from error
            raise TraceFileError(f"{self.path}: the index can't be used: {error}") from error

    def close(self) -> None:
        self.db.close()

    # -- keeping up --

    def catch_up(self, sources: Sequence[Source], report: Callable[[int, int], None] | None = None) -> None:
        """Read what the index does not have yet. `report(bytes done, bytes in all)`.

        A file that was written anew, or is gone, makes the whole index anew.
        """
        with self._told():
            if not self._holds_on(sources):
                self.db.close()
                self.path.unlink()
                self._open()
            total = sum(source.size() for source in sources)
            done = 0
            for source in sources:
                self._add(source, partial(_report, report, done, total))
                done += source.size()

    def _holds_on(self, sources: Sequence[Source]) -> bool:
        """Whether all that was read is still there, as it was."""
        by_name = {source.name: source for source in sources}
        rows = self.db.execute("SELECT name, state, position, read FROM sources").fetchall()
        return all(
            name in by_name and by_name[name].continues(*(json.loads(value) for value in values))
            for name, *values in rows
        )

    def is_current(self, sources: Sequence[Source]) -> bool:
        """Whether nothing was written since. Reads no trace."""
        with self._told():
            known = {name: json.loads(state) for name, state in self.db.execute("SELECT name, state FROM sources")}
        return known == {source.name: source.state() for source in sources}

    def _add(self, source: Source, report: Callable[[int], None]) -> None:
        state = source.state()
        self.db.execute("BEGIN IMMEDIATE")
        try:
            self._add_new(source, state, report)
            self.db.execute("COMMIT")
        except BaseException:
            self.db.execute("ROLLBACK")
            raise

    def _add_new(self, source: Source, state: Any, report: Callable[[int], None]) -> None:
        row = self.db.execute("SELECT number, state, position FROM sources WHERE name = ?", (source.name,)).fetchone()
        if row is not None and json.loads(row[1]) == state:
            return
        number, position = (row[0], json.loads(row[2])) if row else (None, None)
        if number is None:
            number = int(self.db.execute("INSERT INTO sources (name) VALUES (?)", (source.name,)).lastrowid or 0)
        self.db.execute("DELETE FROM damages WHERE source = ? AND reason LIKE '%is torn%'", (number,))
        for found in source.walk(position):
            if isinstance(found.value, Damage):
                damage = found.value
                self.db.execute("INSERT INTO damages VALUES (?, ?, ?)", (number, damage.place, damage.reason))
            else:
                self._insert(number, found, found.value)
            position = found.after
            report(found.bytes_done)
        self.db.execute(
            "UPDATE sources SET state = ?, position = ?, read = ? WHERE number = ?",
            (json.dumps(state), json.dumps(position), json.dumps(source.read_until(position)), number),
        )

    def _insert(self, source: int, found: Found, entry: Entry) -> None:
        row = {"source": source, **_row(entry), "position": json.dumps(found.position)}
        kept = ROW_FIELDS[1 : ROW_FIELDS.index("task")]
        marks = ", ".join("?" for _ in kept)
        added = self.db.execute(
            f"INSERT INTO traces ({', '.join(kept)}) VALUES ({marks})", [row[name] for name in kept]
        )
        number = added.lastrowid
        shown = [row[name] for name in (*_SHOWN, "position")]
        self.db.execute("INSERT INTO shown VALUES (?, ?, ?, ?, ?, ?, ?, ?)", [number, *shown])
        self.db.executemany("INSERT INTO tools VALUES (?, ?)", [(tool, number) for tool in row["tools"]])
        self.db.execute("INSERT INTO words (rowid, text) VALUES (?, ?)", (number, row["text"]))

    # -- questions --

    def count(self, query: Query) -> int:
        where, values = _where(query)
        return self.db.execute(f"SELECT COUNT(*) FROM traces{where}", values).fetchone()[0]

    def rows(self, query: Query, limit: int = 50, offset: int = 0) -> list[dict[str, Any]]:
        """Rows with ROW_FIELDS, in the query's order; traces without the value that is ordered by come last."""
        return [row for number in self.numbers(query, limit, offset) if (row := self.row(number))]

    def numbers(self, query: Query, limit: int, offset: int) -> list[int]:
        where, values = _where(query)
        direction = "DESC" if query.descending else "ASC"
        order = f"number {direction}"
        if query.order != "number":
            last = "" if query.descending else f"{query.order} IS NULL, "
            order = f"{last}{query.order} {direction}, {order}"
        sql = f"SELECT number FROM traces{where} ORDER BY {order} LIMIT ? OFFSET ?"
        return [row[0] for row in self.db.execute(sql, [*values, limit, offset])]

    def row(self, number: int) -> dict[str, Any] | None:
        sql = f"SELECT {', '.join(ROW_FIELDS)} FROM traces JOIN shown USING (number) WHERE number = ?"
        values = self.db.execute(sql, (number,)).fetchone()
        return None if values is None else self._shown(values)

    def numbers_of(self, start_of_id: str) -> list[int]:
        """The traces whose id begins so; at most 20."""
        after = start_of_id + "\U0010ffff"
        sql = "SELECT number FROM traces WHERE id >= ? AND id < ? ORDER BY number LIMIT 20"
        return [row[0] for row in self.db.execute(sql, (start_of_id, after))]

    def position(self, number: int) -> tuple[str, Position] | None:
        """(source's name, where in it) of a trace."""
        sql = (
            "SELECT sources.name, shown.position FROM shown JOIN traces ON traces.number = shown.number "
            "JOIN sources ON sources.number = traces.source WHERE shown.number = ?"
        )
        found = self.db.execute(sql, (number,)).fetchone()
        return None if found is None else (found[0], json.loads(found[1]))

    def facets(self) -> dict[str, dict[str, int]]:
        """How many traces there are of each source, family, outcome, harness, status and tool; most first."""
        sources = {number: name for number, name in self.db.execute("SELECT number, name FROM sources")}
        facets: dict[str, dict[str, int]] = {}
        for name in ("source", "family", "outcome", "harness", "status"):
            counted = self.db.execute(f"SELECT {name}, COUNT(*) FROM traces GROUP BY 1 ORDER BY 2 DESC, 1")
            facets[name] = {(sources[value] if name == "source" else value): count for value, count in counted}
        counted = self.db.execute("SELECT tool, COUNT(*) FROM tools GROUP BY 1 ORDER BY 2 DESC, 1")
        return facets | {"tool": dict(counted.fetchall())}

    def damages(self) -> list[Damage]:
        return [Damage(*row) for row in self.db.execute("SELECT place, reason FROM damages ORDER BY rowid")]

    def _shown(self, values: Sequence[Any]) -> dict[str, Any]:
        row = dict(zip(ROW_FIELDS, values, strict=True))
        row["source"] = self.db.execute("SELECT name FROM sources WHERE number = ?", (row["source"],)).fetchone()[0]
        return row | {name: json.loads(row[name]) for name in ("components", "labels")}


def _report(report: Callable[[int, int], None] | None, before: int, total: int, part: int) -> None:
    if report:
        report(before + part, total)


def _where(query: Query) -> tuple[str, list[Any]]:
    parts: list[str] = []
    values: list[Any] = []
    for name in ("family", "outcome", "harness", "status"):
        if wanted := getattr(query, name):
            parts.append(f"{name} = ?")
            values.append(wanted)
    bounds = (("score", ">=", query.score_min), ("score", "<=", query.score_max))
    for name, sign, bound in (*bounds, ("step", ">=", query.step_min), ("step", "<=", query.step_max)):
        if bound is not None:
            parts.append(f"{name} {sign} ?")
            values.append(bound)
    if query.source:
        parts.append("source IN (SELECT number FROM sources WHERE name = ?)")
        values.append(query.source)
    if query.tool:
        parts.append("number IN (SELECT number FROM tools WHERE tool = ?)")
        values.append(query.tool)
    if words := re.findall(r"[^\W_]+", query.text):
        parts.append("number IN (SELECT rowid FROM words WHERE words MATCH ?)")
        values.append(" AND ".join(f'"{word}"*' for word in words))
    return (" WHERE " + " AND ".join(parts) if parts else ""), values


def _row(entry: Entry) -> dict[str, Any]:
    """What the index keeps of an entry."""
    trace, task, score = entry.trace, entry.task, entry.score
    calls = [node.call for node in trace.nodes if node.call]
    uses = [node.use for node in trace.nodes if node.use]
    tools = dict.fromkeys(_plain(use.tool) for use in uses if use.tool)
    step = entry.labels.get("step")
    facts = trace.facts
    return {
        "id": _plain(trace.id),
        "task": _plain(trace.task_id),
        "family": _plain(task.family) if task else "",
        "outcome": _plain(trace.outcome),
        "harness": _plain(trace.harness),
        "status": score.status if score else "none",
        "score": score.value if score else None,
        "step": step if isinstance(step, int) else None,
        "turns": len(calls),
        "tokens": sum(call.sampled_tokens for call in calls),
        "tool_calls": int(facts.get("tool_calls", len(uses))),
        "invalid_calls": int(facts.get("invalid_calls", 0)),
        "agents": len({node.agent for node in trace.nodes if node.agent}),
        "question": _plain(_question(trace))[:SNIPPET],
        "answer": _plain(trace.answer or trace.reply)[:SNIPPET],
        "components": json.dumps(dict(score.components) if score else {}),
        "labels": json.dumps(dict(entry.labels)),
        "sandbox": _plain(trace.sandbox),
        "tools": tools,
        "text": _plain(" ".join(dict.fromkeys(node.message.content for node in trace.nodes))),
    }


def _question(trace: Trace) -> str:
    return next((node.message.content for node in trace.nodes if node.message.role == "user"), "")


def _plain(text: str) -> str:
    """Without lone surrogates, which SQLite refuses, and NUL, at which it would end."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", " ")
