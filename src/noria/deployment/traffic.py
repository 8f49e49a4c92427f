"""The log of served conversations: one SQLite file that a crash can't take a sent reply from.

What is written depends on the user's consent, decided while writing and never afterwards:

| tier  | what is stored                                                             |
|-------|----------------------------------------------------------------------------|
| none  | counts, timings, sampling settings; no text, no token ids, no prompt digest |
| store | redacted text too, for support and evaluation; never for training          |
| train | redacted text that loop A may turn into data                               |

Text is redacted before it is stored. Token ids spell the text, so they are stored only where redaction changed nothing.
Users are stored as digests, which is enough for per-user caps and for deletion by user.
"""

from __future__ import annotations

import json
import math
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from noria.inference.serving import ServedRequest
from noria.types import Message, digest

SCHEMA_VERSION = 1
CONSENT_TIERS = ("none", "store", "train")
SIGNALS = ("thumbs_up", "thumbs_down", "thumbs_cleared", "regenerated", "stopped", "accepted", "abandoned")
PURGE_EVERY_REPLIES = 256
_OF_USER = "user IN (?, ?)"

Redactor = Callable[[str], tuple[str, Mapping[str, int]]]

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE requests (
  request_id TEXT PRIMARY KEY, received_at REAL NOT NULL, source TEXT NOT NULL, policy TEXT NOT NULL,
  user TEXT NOT NULL, consent TEXT NOT NULL, messages TEXT, prompt_digest TEXT, sampling TEXT NOT NULL,
  prompt_tokens INTEGER NOT NULL, redactions INTEGER NOT NULL, first_token_seconds REAL, total_seconds REAL NOT NULL);
CREATE INDEX requests_by_user ON requests (user);
CREATE INDEX requests_by_time ON requests (received_at);
CREATE TABLE replies (
  request_id TEXT NOT NULL REFERENCES requests ON DELETE CASCADE, choice INTEGER NOT NULL, finish TEXT NOT NULL,
  completion_tokens INTEGER NOT NULL, text TEXT, token_ids TEXT, logprobs TEXT, PRIMARY KEY (request_id, choice));
CREATE TABLE signals (
  request_id TEXT NOT NULL REFERENCES requests ON DELETE CASCADE, choice INTEGER NOT NULL,
  received_at REAL NOT NULL, signal TEXT NOT NULL);
CREATE INDEX signals_by_request ON signals (request_id);
"""


class TrafficError(Exception):
    """The log can't be used as asked; the message says what to do."""


@dataclass(frozen=True)
class Retention:
    """How long and how much: rows older than `days` go first, then the oldest while the file exceeds `max_bytes`."""

    days: float = 30.0
    max_bytes: int = 1 << 30


@dataclass(frozen=True)
class LoggedReply:
    """One row as exported: free of clocks and of the random request id, so that equal conversations give equal rows."""

    user: str
    turn: int
    source: str
    policy: str
    consent: str
    messages: tuple[Message, ...] | None
    reply: str | None
    finish: str
    prompt_digest: str | None
    sampling: Mapping[str, Any]
    prompt_tokens: int
    completion_tokens: int
    token_ids: tuple[int, ...] | None
    logprobs: tuple[float, ...] | None
    redactions: int
    signals: tuple[str, ...] = field(default_factory=tuple)


class TrafficLog:
    """Appends replies and signals, deletes by user and by age. Safe to call from several threads of one process."""

    def __init__(
        self,
        path: Path,
        policy: str,
        redact: Redactor,
        source: str = "live",
        retention: Retention | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`policy` is the digest of the model that answers; `source` says who asks: live users or scripted ones."""
        self.path, self.policy, self.source = Path(path), policy, source
        self._redact, self._retention, self._clock = redact, retention or Retention(), clock
        self._lock, self._since_purge = threading.Lock(), 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
        try:
            self._prepare()
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise TrafficError(
                f"{self.path}: not a traffic log ({error}); give another path or move the file away"
            ) from error
        except TrafficError:
            self._db.close()
            raise

    def _prepare(self) -> None:
        # auto_vacuum must precede the first table. WAL lets readers look on while the server writes.
        self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        self._db.execute("PRAGMA journal_mode = WAL")
        # FULL: one fsync a reply, so that what a user has seen survives power loss too, not only kill -9 (for which
        # NORMAL would do). A few milliseconds beside a reply of hundreds.
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        self._db.execute("PRAGMA secure_delete = ON")
        self._db.execute("PRAGMA journal_size_limit = 4194304")
        self._db.execute("PRAGMA busy_timeout = 5000")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise TrafficError(f"{self.path}: schema version {version} is newer than {SCHEMA_VERSION}; update noria")
        if version == 0:
            self._db.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")
        self.purge()

    def record(self, served: ServedRequest) -> None:
        """Commits one answered request. When this returns, the row is on disk: send the last chunk only then."""
        if served.consent not in CONSENT_TIERS:
            raise TrafficError(f"consent {served.consent!r} is unknown; allowed: {', '.join(CONSENT_TIERS)}")
        request, replies = _rows(served, self.policy, self.source, self._clock(), self._redact)
        with self._lock:
            with _transaction(self._db):
                self._db.execute(f"INSERT INTO requests VALUES ({','.join('?' * len(request))})", request)
                self._db.executemany("INSERT INTO replies VALUES (?,?,?,?,?,?,?)", replies)
            self._since_purge += 1
            due = self._since_purge >= PURGE_EVERY_REPLIES
        if due:
            self.purge()

    def signal(self, request_id: str, signal: str, choice: int = 0) -> bool:
        """Adds one signal about a reply; False where no such reply is logged."""
        if signal not in SIGNALS:
            raise TrafficError(f"signal {signal!r} is unknown; allowed: {', '.join(SIGNALS)}")
        with self._lock, _transaction(self._db):
            known = self._db.execute(
                "SELECT 1 FROM replies WHERE request_id=? AND choice=?", (request_id, choice)
            ).fetchone()
            if known:
                # A row per kind and reply: repeated clicks can't grow the file.
                self._db.execute(
                    "DELETE FROM signals WHERE request_id=? AND choice=?"
                    " AND (signal=? OR (? LIKE 'thumbs%' AND signal LIKE 'thumbs%'))",
                    (request_id, choice, signal, signal),
                )
                self._db.execute("INSERT INTO signals VALUES (?,?,?,?)", (request_id, choice, self._clock(), signal))
        return bool(known)

    def delete_user(self, user: str) -> int:
        """Deletes all rows of `user` (as named in requests, or the digest of that), overwriting their bytes; returns
        how many requests."""
        with self._lock:
            with _transaction(self._db):
                count = self._db.execute(f"DELETE FROM requests WHERE {_OF_USER}", _of_user(user)).rowcount
            self._shrink()
        return count

    def purge(self) -> int:
        """Applies the retention; returns how many requests went."""
        with self._lock:
            self._since_purge = 0
            oldest = self._clock() - self._retention.days * 86400
            with _transaction(self._db):
                gone = self._db.execute("DELETE FROM requests WHERE received_at < ?", (oldest,)).rowcount
            while self._used_bytes() > self._retention.max_bytes:
                with _transaction(self._db):
                    batch = self._db.execute(
                        "DELETE FROM requests WHERE request_id IN"
                        " (SELECT request_id FROM requests ORDER BY received_at LIMIT 64)"
                    ).rowcount
                if not batch:
                    break
                gone += batch
            if gone:
                self._shrink()
        return gone

    def replies(self) -> Iterator[LoggedReply]:
        """All rows, ordered by (user, turn): an order that does not depend on when requests arrived."""
        yield from read_replies(self.path)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _used_bytes(self) -> int:
        pages, free, size = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def _shrink(self) -> None:
        # executescript steps the statement to its end; execute would free a single page.
        self._db.executescript("PRAGMA incremental_vacuum")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


class _transaction:
    """BEGIN IMMEDIATE ... COMMIT, or ROLLBACK on an error."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._db.execute("ROLLBACK" if kind else "COMMIT")


def user_digest(user: str) -> str:
    """How `user` is spelled in the log; an anonymous user (empty name) stays empty."""
    return digest("traffic user", user) if user else ""


def _of_user(user: str) -> tuple[str, str]:
    return user, user_digest(user)


def requests_of_user(path: Path, user: str) -> int:
    """How many requests of `user` (as named in them, or its digest) a log holds. Raises TrafficError for no log."""
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            return db.execute(f"SELECT COUNT(*) FROM requests WHERE {_OF_USER}", _of_user(user)).fetchone()[0]
        finally:
            db.close()
    except sqlite3.DatabaseError as error:
        raise TrafficError(f"{path}: not a traffic log ({error})") from error


def forget_user(path: Path, user: str) -> int:
    """Deletes what a log holds of `user`, as `TrafficLog.delete_user` does, and nothing else, however old it is."""
    everything = Retention(days=math.inf, max_bytes=sys.maxsize)
    log = TrafficLog(path, policy="", redact=lambda text: (text, {}), retention=everything)
    try:
        return log.delete_user(user)
    finally:
        log.close()


def _rows(
    served: ServedRequest, policy: str, source: str, now: float, redact: Redactor
) -> tuple[tuple[Any, ...], list[tuple[Any, ...]]]:
    keep = served.consent != "none"
    found = 0
    messages, prompt_digest = None, None
    if keep:
        redacted = []
        for message in served.messages:
            text, counts = redact(message.content)
            found += sum(counts.values())
            redacted.append({"role": message.role, "content": text})
        messages = json.dumps(redacted, ensure_ascii=False)
        prompt_digest = digest("traffic prompt", messages)
    replies: list[tuple[Any, ...]] = []
    for choice, reply in enumerate(served.choices):
        kept, ids, logprobs = None, None, None
        if keep:
            kept, counts = redact(reply.text)
            found += sum(counts.values())
            if kept == reply.text:
                ids, logprobs = json.dumps(reply.token_ids), json.dumps([round(value, 6) for value in reply.logprobs])
        replies.append((served.request_id, choice, reply.finish, len(reply.token_ids), kept, ids, logprobs))
    sampling = dict(served.sampling)
    if not keep and "stop" in sampling:
        sampling["stop"] = len(sampling["stop"])  # stop strings are the user's words too
    request = (
        *(served.request_id, now, source, policy, user_digest(served.user), served.consent, messages, prompt_digest),
        *(json.dumps(sampling, sort_keys=True), served.prompt_tokens, found),
        *(served.first_token_seconds, served.total_seconds),
    )
    return request, replies


def read_replies(path: Path) -> list[LoggedReply]:
    """Every reply of a log, read without disturbing the server that may be writing it."""
    db = sqlite3.connect(path)
    try:
        signals: dict[tuple[str, int], list[str]] = {}
        for request_id, choice, name in db.execute("SELECT request_id, choice, signal FROM signals ORDER BY signal"):
            signals.setdefault((request_id, choice), []).append(name)
        rows = db.execute(
            "SELECT r.request_id, p.choice, r.user, r.source, r.policy, r.consent, r.messages, p.text, p.finish,"
            " r.prompt_digest, r.sampling, r.prompt_tokens, p.completion_tokens, p.token_ids, p.logprobs, r.redactions"
            " FROM requests r JOIN replies p USING (request_id) ORDER BY r.user, r.received_at, r.rowid, p.choice"
        ).fetchall()
    finally:
        db.close()
    turns: dict[str, int] = {}
    replies = []
    for row in rows:
        request_id, choice, user = row[:3]
        turns[user] = turns.get(user, -1) + 1
        replies.append(
            LoggedReply(
                *(user, turns[user], row[3], row[4], row[5]),
                messages=_messages(row[6]),
                reply=row[7],
                finish=row[8],
                prompt_digest=row[9],
                sampling=json.loads(row[10]),
                prompt_tokens=row[11],
                completion_tokens=row[12],
                token_ids=_numbers(row[13]),
                logprobs=_numbers(row[14]),
                redactions=row[15],
                signals=tuple(signals.get((request_id, choice), ())),
            )
        )
    return replies


def _messages(raw: str | None) -> tuple[Message, ...] | None:
    return None if raw is None else tuple(Message(**message) for message in json.loads(raw))


def _numbers(raw: str | None) -> tuple[Any, ...] | None:
    return None if raw is None else tuple(json.loads(raw))


def export_jsonl(replies: Sequence[LoggedReply], path: Path) -> int:
    """Writes one reply a line, canonical JSON; a line's byte offset is the record offset that lineage points at.

    Artifacts outlive the log's retention, so only what users gave for training leaves it as text.
    """
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for reply in replies:
            row = {name: getattr(reply, name) for name in reply.__dataclass_fields__}
            row["messages"] = None if reply.messages is None else [vars(message) for message in reply.messages]
            if reply.consent != "train":
                row |= dict.fromkeys(("messages", "reply", "token_ids", "logprobs", "prompt_digest"))
            file.write(json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":")) + "\n")
    return len(replies)


def read_jsonl(path: Path) -> Iterator[tuple[int, int, LoggedReply]]:
    """(byte offset, length in bytes, reply) for each line that `export_jsonl` wrote."""
    offset = 0
    with open(path, "rb") as file:
        for line in file:
            row = json.loads(line)
            row["messages"] = (
                None if row["messages"] is None else tuple(Message(**message) for message in row["messages"])
            )
            for name in ("token_ids", "logprobs", "signals"):
                row[name] = None if row[name] is None else tuple(row[name])
            yield offset, len(line), LoggedReply(**row)
            offset += len(line)
