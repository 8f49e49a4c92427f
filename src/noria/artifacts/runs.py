"""The run database: what was observed while running. SQLite in WAL mode, so pages read while a run writes.

Nothing here takes part in a key, and losing the file loses no artifact. One connection, usable from several threads of
the process that opened it; a forked worker hands its numbers to its parent.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from noria.artifacts.aliases import now
from noria.artifacts.errors import StoreError

# Each entry takes a database from the schema of its index to the next; PRAGMA user_version says where one is.
# Entries are only ever appended.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE runs (
        run INTEGER PRIMARY KEY, name TEXT NOT NULL, recipe TEXT NOT NULL, process INTEGER NOT NULL,
        status TEXT NOT NULL, started TEXT NOT NULL, finished TEXT);
    CREATE TABLE steps (
        run INTEGER NOT NULL, step_name TEXT NOT NULL, position INTEGER NOT NULL, stage TEXT NOT NULL,
        key TEXT NOT NULL, status TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', started TEXT, finished TEXT,
        done REAL NOT NULL DEFAULT 0, total REAL NOT NULL DEFAULT 0, unit TEXT NOT NULL DEFAULT '',
        rate REAL, note TEXT NOT NULL DEFAULT '', PRIMARY KEY (run, step_name)) WITHOUT ROWID;
    CREATE INDEX steps_by_key ON steps (key);
    CREATE TABLE metrics (
        run INTEGER NOT NULL, step_name TEXT NOT NULL, name TEXT NOT NULL, step INTEGER NOT NULL, value REAL,
        PRIMARY KEY (run, step_name, name, step)) WITHOUT ROWID;
    CREATE TABLE events (
        event INTEGER PRIMARY KEY, run INTEGER NOT NULL, time TEXT NOT NULL, step_name TEXT NOT NULL,
        kind TEXT NOT NULL, message TEXT NOT NULL, data TEXT NOT NULL);
    CREATE INDEX events_by_run ON events (run);
    """,
)
SCHEMA = len(MIGRATIONS)
PARTIAL = "partial"  # the kind of event that says that a run was asked for some steps of its recipe only


Values = tuple[Any, ...] | dict[str, Any]


class RunDatabase:
    """Runs, their steps, metrics and events. Step status: waiting, running, publishing, made, reused, failed,
    interrupted, killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        try:
            self._connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            self._connection.row_factory = sqlite3.Row
            self._migrate()
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def start_run(self, name: str, recipe: Mapping[str, Any]) -> int:
        """A new run's number."""
        row = (name, json.dumps(recipe, sort_keys=True, default=str), os.getpid(), now())
        sql = "INSERT INTO runs (name, recipe, process, status, started) VALUES (?, ?, ?, 'running', ?) RETURNING run"
        return self._query(sql, row)[0]["run"]

    def finish_run(self, run: int, status: str) -> None:
        self._query("UPDATE runs SET status = ?, finished = ? WHERE run = ?", (status, now(), run))

    def start_step(
        self, run: int, step_name: str, position: int, stage: str, key: str, status: str, reason: str
    ) -> None:
        """The row of a step of a run; `reason` says why it is made or reused."""
        sql = """INSERT OR REPLACE INTO steps (run, step_name, position, stage, key, status, reason, started)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""
        self._query(sql, (run, step_name, position, stage, key, status, reason, now()))

    def update_step(self, run: int, step_name: str, **fields: Any) -> None:
        """Set columns of a step: status, done, total, unit, rate, note, started, finished."""
        assignments = ", ".join(f"{name} = ?" for name in fields)
        self._query(
            f"UPDATE steps SET {assignments} WHERE run = ? AND step_name = ?", (*fields.values(), run, step_name)
        )

    def log(self, run: int, step_name: str, step: int, values: Mapping[str, float]) -> None:
        """Metrics of one training step. Logging a step again (after a resume) replaces its values."""
        rows = [(run, step_name, name, step, float(value)) for name, value in values.items()]
        with self._lock:
            try:
                with self._connection:
                    self._connection.execute("BEGIN")
                    self._connection.executemany("INSERT OR REPLACE INTO metrics VALUES (?, ?, ?, ?, ?)", rows)
            except sqlite3.Error as error:
                raise self._explained(error) from error

    def event(self, run: int, step_name: str, kind: str, message: str, data: Mapping[str, Any] | None = None) -> None:
        row = (run, now(), step_name, kind, message, json.dumps(data or {}, default=str))
        sql = "INSERT INTO events (run, time, step_name, kind, message, data) VALUES (?, ?, ?, ?, ?, ?)"
        self._query(sql, row)

    def runs(self) -> list[dict[str, Any]]:
        return self._rows("SELECT * FROM runs ORDER BY run")

    def steps(self, run: int) -> list[dict[str, Any]]:
        return self._rows("SELECT * FROM steps WHERE run = ? ORDER BY position", (run,))

    def steps_of_key(self, key: str) -> list[dict[str, Any]]:
        """Every time a key was made or reused, oldest first."""
        sql = "SELECT steps.*, runs.name AS run_name FROM steps JOIN runs USING (run) WHERE key = ? ORDER BY run"
        return self._rows(sql, (key,))

    def seconds_of_key(self, key: str) -> float:
        """Wall-clock seconds spent making a key, over all runs that worked on it and ended in order or by Ctrl-C."""
        sql = "SELECT SUM((julianday(finished) - julianday(started)) * 86400) AS spent FROM steps WHERE key = ?"
        return self._rows(sql, (key,))[0]["spent"] or 0.0

    def last_time(self, step_name: str, run_name: str) -> tuple[float, str] | None:
        """(seconds, run's name) of the last time that a step of this name was made, by a run of that name if there was
        one, else by any. Starts that ended before it was made count; those that were killed left no end."""
        sql = """
            WITH last AS (
                SELECT run, name, key FROM steps JOIN runs USING (run)
                WHERE step_name = :step AND steps.status = 'made' ORDER BY name = :name DESC, run DESC LIMIT 1),
            before AS (
                SELECT MAX(steps.run) AS run FROM steps JOIN last USING (key)
                WHERE steps.status = 'made' AND steps.run < last.run)
            SELECT SUM((julianday(steps.finished) - julianday(steps.started)) * 86400) AS spent, last.name AS name
            FROM steps JOIN last USING (key)
            WHERE steps.run <= last.run AND steps.run > COALESCE((SELECT run FROM before), 0) GROUP BY last.name"""
        rows = self._rows(sql, {"step": step_name, "name": run_name})
        return (rows[0]["spent"], rows[0]["name"]) if rows and rows[0]["spent"] is not None else None

    def events(self, run: int) -> list[dict[str, Any]]:
        rows = self._rows("SELECT * FROM events WHERE run = ? ORDER BY event", (run,))
        return [{**row, "data": json.loads(row["data"])} for row in rows]

    def metric_names(self, key: str) -> list[str]:
        """The names logged while making an artifact."""
        sql = "SELECT DISTINCT name FROM metrics JOIN steps USING (run, step_name) WHERE key = ? ORDER BY name"
        return [row["name"] for row in self._rows(sql, (key,))]

    def curve(self, key: str, name: str) -> list[tuple[int, float]]:
        """(step, value) of a metric of an artifact over all runs that worked on it; the latest run's value counts."""
        sql = """SELECT step, value, MAX(run) FROM metrics JOIN steps USING (run, step_name)
                 WHERE key = ? AND name = ? GROUP BY step ORDER BY step"""
        return [(row["step"], row["value"]) for row in self._rows(sql, (key, name))]

    def latest_key(self, run_name: str, step_name: str) -> str | None:
        """The key that a step of this name had when a run of this name last made or reused it."""
        sql = """SELECT key FROM steps JOIN runs USING (run) WHERE name = ? AND step_name = ?
                 AND steps.status IN ('made', 'reused') ORDER BY run DESC LIMIT 1"""
        rows = self._rows(sql, (run_name, step_name))
        return rows[0]["key"] if rows else None

    def keys_needed(self) -> dict[str, str]:
        """Key -> name of the run that needs it: what a rerun of those recipes would reuse or resume.

        Of each name that is the last run, however it ended, the last one that finished all steps of its recipe, and
        what each step made last since then: neither a run of one stage nor one that failed over a mistyped setting
        takes anything away from the recipe's next run.
        """
        sql = """
            WITH whole AS (
                SELECT name, MAX(run) AS run FROM runs
                WHERE status = 'made' AND run NOT IN (SELECT run FROM events WHERE kind = :partial) GROUP BY name),
            since AS (
                SELECT MAX(steps.run) AS run, step_name FROM steps JOIN runs USING (run) LEFT JOIN whole USING (name)
                WHERE steps.status IN ('made', 'reused') AND steps.run > COALESCE(whole.run, 0)
                GROUP BY name, step_name)
            SELECT name, key FROM steps JOIN runs USING (run)
            WHERE run IN (SELECT MAX(run) FROM runs GROUP BY name) OR run IN (SELECT run FROM whole)
                OR (run, step_name) IN (SELECT run, step_name FROM since)"""
        return {row["key"]: row["name"] for row in self._rows(sql, {"partial": PARTIAL})}

    def mark_killed(self, run: int) -> None:
        """Record that a run ended without saying so."""
        self._query("UPDATE runs SET status = 'killed' WHERE run = ?", (run,))
        self._query(
            "UPDATE steps SET status = 'killed' WHERE run = ? AND status IN ('running', 'waiting', 'publishing')",
            (run,),
        )

    def _migrate(self) -> None:
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")  # survives kill -9; a power cut may lose the last rows
        if self._schema() == SCHEMA:
            return  # to look at a store writes nothing
        self._connection.execute("BEGIN IMMEDIATE")  # two first runs must not both create the tables
        schema = self._schema()
        if schema > SCHEMA:
            self._connection.execute("ROLLBACK")
            raise StoreError(
                f"{self.path} has schema {schema}, made by a newer noria; this one reads up to {SCHEMA}. "
                "Nothing was changed: use that newer version, or another store with --store"
            )
        for index in range(schema, SCHEMA):
            for statement in MIGRATIONS[index].split(";"):
                self._connection.execute(statement)
        self._connection.execute(f"PRAGMA user_version = {SCHEMA}")
        self._connection.execute("COMMIT")

    def _schema(self) -> int:
        with closing(self._connection.execute("PRAGMA user_version")) as cursor:
            return cursor.fetchone()[0]

    def _rows(self, sql: str, values: Values = ()) -> list[dict[str, Any]]:
        return [dict(row) for row in self._query(sql, values)]

    def _query(self, sql: str, values: Values = ()) -> list[sqlite3.Row]:
        with self._lock:
            try:
                return self._connection.execute(sql, values).fetchall()
            except sqlite3.Error as error:
                raise self._explained(error) from error

    def _explained(self, error: sqlite3.Error) -> StoreError:
        text = str(error)
        if "full" in text:
            advice = "the disk is full. Free space (`noria gc` shows what can go) and run the same command again"
        elif "readonly" in text or "unable to open" in text:
            advice = "no permission to write there. Choose another folder with --store, or correct its owner"
        elif "locked" in text:
            advice = "another process holds it for too long. End that process, then run the same command again"
        else:
            advice = f"{text}. It holds only clocks and curves: move it away and run again; no artifact is lost"
        return StoreError(f"{self.path}: {advice}")
