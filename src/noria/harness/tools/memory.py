"""A memory of texts by key: `remember`, `recall`, `forget`, on SQLite with full-text search.

    memory_tools()                       # for one trace, kept as notes: {"memory": {"plan": "first the tests"}}
    memory_tools(Path("memory.sqlite"))  # for many traces, kept in a file; what it recalls depends on earlier traces,
                                         # so its results are recorded as not deterministic

Both run the same queries: notes are loaded into a database in memory for each call. Texts that share a word with what
is asked are ranked by SQLite's bm25 (words are compared by their stems, as FTS5's porter tokenizer makes them), a word
of the key counting four times; then come texts that hold the whole query as it is written, for languages without
blanks.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

from noria.harness.tools.text import valid
from noria.harness.tools.toolbox import HostTool, Parameter, ToolCall, ToolError, ToolResult, own_text

NOTES = "memory"
KEY = re.compile(r"[^\W_][\w.:/-]{0,63}")
MOST_TEXT, MOST_KEYS, MOST_QUERY_WORDS, MOST_RECALLED = 4096, 256, 32, 5
WAIT_SECONDS = 30.0  # for another trace that writes to the same file

Change = Callable[[sqlite3.Connection, ToolCall], str]


def memory_tools(path: Path | None = None) -> tuple[HostTool, ...]:
    """The three tools. Raises ValueError where `path` is no database of this kind, or can't be made."""
    if path is not None:
        try:
            _open(path).close()
        except sqlite3.Error as error:
            raise ValueError(f"{path}: no memory can be kept there: {error}") from error

    def tool(name: str, description: str, parameters: tuple[Parameter, ...], change: Change) -> HostTool:
        def run(call: ToolCall) -> ToolResult:
            return _in_notes(call, change) if path is None else _in_file(path, call, change)

        return HostTool(name, description, parameters, run, deterministic=path is None)

    key = Parameter("key", "a word: letters, digits and . : / - _")
    return (
        tool("remember", "remember KEY TEXT: keep TEXT under KEY", (key, Parameter("text", "what to keep")), _remember),
        tool(
            "recall",
            f"recall QUERY: what was kept under the key QUERY, or the {MOST_RECALLED} texts that fit it best",
            (Parameter("query", "a key, or words"),),
            _recall,
        ),
        tool("forget", "forget KEY: drop what was kept under KEY", (key,), _forget),
    )


def _remember(database: sqlite3.Connection, call: ToolCall) -> str:
    key, text = call.arguments["key"], call.arguments["text"]
    if not KEY.fullmatch(key):
        raise ToolError("a key is a word of at most 64 letters, digits and . : / - _")
    if not text.strip() or len(text) > MOST_TEXT:
        raise ToolError(f"a text has 1 to {MOST_TEXT} characters, not {len(text)}")
    replaced = database.execute("DELETE FROM memory WHERE key = ?", (key,)).rowcount
    (count,) = database.execute("SELECT count(*) FROM memory").fetchone()
    if count >= MOST_KEYS:
        raise ToolError(f"{MOST_KEYS} texts are kept, no more fit: forget one first")
    database.execute("INSERT INTO memory (key, words, text) VALUES (?, ?, ?)", (key, _spaced(key), valid(text)))
    return f"replaced {key}" if replaced else f"kept {key}"


def _recall(database: sqlite3.Connection, call: ToolCall) -> str:
    query = valid(call.arguments["query"]).strip()
    if not query:
        raise ToolError("ask for a key or for words")
    found = database.execute("SELECT key, text FROM memory WHERE key = ?", (query,)).fetchall()
    if not found:
        words = re.findall(r"\w+", _spaced(query))[:MOST_QUERY_WORDS]
        asked = " OR ".join(f'"{word}"' for word in words)
        ranked = "SELECT key, text FROM memory WHERE memory MATCH ? ORDER BY bm25(memory, 0, 4, 1), key LIMIT ?"
        found = database.execute(ranked, (asked, MOST_RECALLED)).fetchall() if words else []
    if len(found) < MOST_RECALLED and not any(key == query for key, _ in found):
        written = database.execute("SELECT key, text FROM memory WHERE instr(text, ?) ORDER BY key", (query,))
        found += [row for row in written.fetchall() if row not in found][: MOST_RECALLED - len(found)]
    return "\n".join(f"{key}: {text}" for key, text in found) or "nothing fits"


def _forget(database: sqlite3.Connection, call: ToolCall) -> str:
    key = valid(call.arguments["key"])
    if not database.execute("DELETE FROM memory WHERE key = ?", (key,)).rowcount:
        raise ToolError(f"nothing is kept under {key}"[:200])
    return f"forgot {key}"


def _in_notes(call: ToolCall, change: Change) -> ToolResult:
    kept: Mapping[str, str] = call.notes.get(NOTES, {})
    with closing(_open(None)) as database:
        rows = [(key, _spaced(key), text) for key, text in kept.items()]
        database.executemany("INSERT INTO memory (key, words, text) VALUES (?, ?, ?)", rows)
        text = change(database, call)
        after = dict(database.execute("SELECT key, text FROM memory ORDER BY key").fetchall())
    notes = {**call.notes, NOTES: after} if after != kept else call.notes
    return ToolResult(own_text(text), call.files, notes)


def _in_file(path: Path, call: ToolCall, change: Change) -> ToolResult:
    try:
        with closing(_open(path)) as database:
            database.execute("BEGIN IMMEDIATE")
            text = change(database, call)  # a ToolError leaves the transaction, and the memory, undone
            database.execute("COMMIT")
    except sqlite3.Error as error:
        raise ToolError(f"the memory can't be used: {error}") from error
    return ToolResult(own_text(text), call.files, call.notes, deterministic=False)


def _open(path: Path | None) -> sqlite3.Connection:
    database = sqlite3.connect(path or ":memory:", timeout=WAIT_SECONDS, isolation_level=None)
    try:
        database.execute(
            "CREATE VIRTUAL TABLE IF NOT EXISTS memory "
            "USING fts5(key UNINDEXED, words, text, tokenize = 'porter unicode61')"
        )
        database.execute("SELECT key, words, text FROM memory LIMIT 0")
    except sqlite3.Error:
        database.close()
        raise
    return database


def _spaced(key: str) -> str:
    """The words of a key, apart: the tokenizer parts them at signs but not at _."""
    return key.replace("_", " ")
