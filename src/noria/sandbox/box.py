"""The sandbox from outside: `Sandbox` keeps warm servers over many batches, `run_functions` is the one-line door.

A `Candidate` is source text with a function and the calls to make; its `Outcome` holds the returned values, as JSON,
parsed out here. Whoever grades compares values with what was expected: no verdict is ever computed inside.
"""

from __future__ import annotations

import atexit
import base64
import json
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from noria.sandbox.check import Kind, choose
from noria.sandbox.connection import Connection, ServerDied
from noria.sandbox.limits import Limits, Profile

Status = Literal["ok", "error", "timeout", "crash", "refused", "sandbox"]


@dataclass(frozen=True)
class Candidate:
    """`source` defines the function `entry`, called once with each list of arguments in `calls` (JSON values)."""

    source: str
    entry: str
    calls: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate or command.

    ok: it returned (`values`, one a call; a command: `exit_code`). error: it raised, or returned no JSON value.
    timeout: a limit of time fired. crash: its process died. refused: not run, for the reason in `error`.
    sandbox: the sandbox itself failed twice; says nothing about the candidate.
    """

    status: Status
    values: list[Any] | None = None
    error: str = ""
    output: str = ""
    exit_code: int = 0
    files: Mapping[str, bytes] = field(default_factory=dict)  # of a command or function with a workspace, after it
    skipped: Mapping[str, str] = field(default_factory=dict)  # path -> why it could not be taken out
    output_cut: bool = False  # whether it may have printed more than is kept


class Sandbox:
    """`workers` sandboxes that live until `close`, each with one candidate at a time. Use as a context manager.

    Raises SandboxUnavailable where this machine can't sandbox as asked; there is no unsandboxed mode. `allow_weaker`
    (left None: NORIA_ALLOW_WEAKER_SANDBOX=1) takes Landlock where user namespaces are missing; `kind` demands one.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        workers: int | None = None,
        profile: Profile | None = None,
        *,
        allow_weaker: bool | None = None,
        kind: Kind | None = None,
    ) -> None:
        self.limits, self.profile = limits or Limits(), profile or Profile()
        self.report = choose(kind, allow_weaker, self.profile)
        self.workers = workers or min(4, os.cpu_count() or 1)
        self._closed = False
        self._connections = tuple(Connection(self.limits, self.profile, self.report) for _ in range(self.workers))
        self._stand_by()
        _all.add(self)

    def _stand_by(self) -> None:
        """All connections idle, and threads that are started when they are first needed."""
        self._idle = list(self._connections)
        self._free = threading.Semaphore(self.workers)
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="sandbox") if self.workers > 1 else None

    def _leave_to_parent(self) -> None:
        """In a fork, before anything else: its parent's servers are let go of, and what its parent's threads held or
        were doing is made anew, for it has none of those threads."""
        for connection in self._connections:
            connection.leave_to_parent()
        self._stand_by()

    @property
    def label(self) -> str:
        """What ran a trace's tools: "bubblewrap" or "landlock (weaker)"."""
        return self.report.label

    @property
    def servers(self) -> tuple[int, ...]:
        """The process ids of the servers that are running and idle; a server that died has another once it restarts."""
        return tuple(sorted(connection.pid for connection in self._idle if connection.pid))

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the servers and with them everything inside."""
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown()
        for connection in self._idle:
            connection.close()

    def run_functions(self, candidates: Sequence[Candidate]) -> list[Outcome]:
        """One Outcome a candidate, in order. Equal candidates run once and share their outcome."""
        jobs = [self._function_job(candidate, None) for candidate in candidates]
        return self._run_distinct(jobs)

    def run_function(self, candidate: Candidate, files: Mapping[str, bytes] | None = None) -> Outcome:
        """One function, called in a workspace that holds `files`; the outcome's `files` are those afterwards."""
        return self._run(self._function_job(candidate, files or {}))

    def run_functions_in(
        self, jobs: Sequence[tuple[Candidate, Mapping[str, bytes]]], share: bool = True
    ) -> list[Outcome]:
        """A batch of `run_function`: each candidate in a workspace of its own; equal ones run once if they `share`."""
        made = [self._function_job(candidate, files) for candidate, files in jobs]
        return self._run_distinct(made) if share else self._run_each(made)

    def run_command(self, argv: Sequence[str], files: Mapping[str, bytes] | None = None) -> Outcome:
        """A program of /usr/bin (e.g. ["cat", "notes"]) run in a workspace that holds `files`. No shell is implied."""
        return self.run_commands([(argv, files or {})])[0]

    def run_commands(
        self, jobs: Sequence[tuple[Sequence[str], Mapping[str, bytes]]], share: bool = True
    ) -> list[Outcome]:
        """A batch of `run_command`, in order; equal commands on equal files run once if they `share`."""
        made = [self._command_job(argv, files) for argv, files in jobs]
        return self._run_distinct(made) if share else self._run_each(made)

    def _command_job(self, argv: Sequence[str], files: Mapping[str, bytes]) -> _Job | _Refusal:
        if reason := _refuse_command(argv, self.limits) or _refuse_files(files, self.limits):
            return reason
        return _Job(json.dumps({"argv": list(argv), "files": _pack(files)}, sort_keys=True), True, argv[0])

    def _function_job(self, candidate: Candidate, files: Mapping[str, bytes] | None) -> _Job | _Refusal:
        job: dict[str, Any] = {"argv": None, "source": candidate.source, "entry": candidate.entry}
        if len(candidate.source) > self.limits.source_bytes:
            return _Refusal(f"the source is longer than {self.limits.source_bytes} characters")
        if files and (reason := _refuse_files(files, self.limits)):
            return reason
        try:
            job["calls"] = [list(arguments) for arguments in candidate.calls]
            job["files"] = _pack(files or {})
            return _Job(json.dumps(job, sort_keys=True, allow_nan=False), files is not None)
        except (TypeError, ValueError, RecursionError) as error:
            return _Refusal(f"the calls are not JSON values: {error}")

    def _run_distinct(self, jobs: Sequence[_Job | _Refusal]) -> list[Outcome]:
        distinct = list(dict.fromkeys(jobs))
        found = dict(zip(distinct, self._run_each(distinct), strict=True))
        return [found[job] for job in jobs]

    def _run_each(self, jobs: Sequence[_Job | _Refusal]) -> list[Outcome]:
        if self._pool is None or len(jobs) < 2:
            return [self._run(job) for job in jobs]
        return list(self._pool.map(self._run, jobs))

    def _run(self, job: _Job | _Refusal) -> Outcome:
        if isinstance(job, _Refusal):
            return Outcome("refused", error=job)
        if self._closed:
            raise ValueError("this sandbox was closed; make another")
        self._free.acquire()
        with self._lock:
            connection = self._idle.pop()
        try:
            return _outcome(connection.ask(job.text.encode(), job.collect), job, self.limits)
        except ServerDied as death:
            return Outcome("sandbox", error=str(death))
        finally:
            with self._lock:
                self._idle.append(connection)
            self._free.release()


class _Refusal(str):
    """Why a job is not run."""


@dataclass(frozen=True)
class _Job:
    text: str  # JSON for the server
    collect: bool  # whether the files that it leaves are wanted
    command: str = ""  # the program, where it is one


class Workspace:
    """A folder of small files that tools act on; between commands it lives out here as plain values.

    Only what regular files hold carries over: no empty folders, links, times or permissions, but a file that begins as
    a program does (#! or ELF) can be run.
    """

    def __init__(self, box: Sandbox, files: Mapping[str, bytes] | None = None) -> None:
        self.box = box
        self.files: dict[str, bytes] = dict(files or {})

    def write(self, path: str, content: bytes) -> None:
        if reason := _refuse_files({path: content}, self.box.limits):
            raise ValueError(reason)
        self.files[path] = content

    def read(self, path: str) -> bytes:
        """The content of `path`; KeyError where there is no such regular file."""
        return self.files[path]

    def run(self, argv: Sequence[str]) -> Outcome:
        """Runs a command in this workspace. After a timeout or crash the files stay as they were before it."""
        outcome = self.box.run_command(argv, self.files)
        if outcome.status == "ok":
            self.files = dict(outcome.files)
        return outcome


def run_functions(candidates: Sequence[Candidate], limits: Limits | None = None) -> list[Outcome]:
    """`Sandbox.run_functions` on a sandbox that is kept for the life of this process, one for each set of limits; a
    fork of it has its own."""
    limits = limits or Limits()
    with _shared_lock:
        if limits not in _shared:
            _shared[limits] = Sandbox(limits)
    return _shared[limits].run_functions(candidates)


_all: weakref.WeakSet[Sandbox] = weakref.WeakSet()
_shared: dict[Limits, Sandbox] = {}
_shared_lock = threading.Lock()


@atexit.register
def _close_shared() -> None:
    for box in _shared.values():
        box.close()
    _shared.clear()


def _leave_all_to_parent() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()  # a thread of the parent may have held it
    for box in list(_all):
        box._leave_to_parent()
    _shared.clear()


os.register_at_fork(after_in_child=_leave_all_to_parent)


def _pack(files: Mapping[str, bytes]) -> dict[str, str]:
    return {path: base64.b64encode(content).decode() for path, content in files.items()}


def _refuse_command(argv: Sequence[str], limits: Limits) -> _Refusal | None:
    if not argv or not argv[0]:
        return _Refusal("an empty command")
    if any("\0" in word for word in argv):
        return _Refusal("a word of the command holds a NUL character")
    if sum(map(len, argv)) > limits.source_bytes:
        return _Refusal(f"the command is longer than {limits.source_bytes} characters")
    return None


def _refuse_files(files: Mapping[str, bytes], limits: Limits) -> _Refusal | None:
    for path, content in files.items():
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or "\0" in path or _bytes_of(path) > 255:
            return _Refusal(f"the path {path!r} would leave the workspace or is no path")
        if above := next((str(folder) for folder in PurePosixPath(path).parents if str(folder) in files), None):
            return _Refusal(f"{above!r} can't be a file and the folder of {path!r}")
        if len(content) > limits.file_bytes:
            return _Refusal(f"the file {path!r} has {len(content)} bytes, more than {limits.file_bytes}")
    if sum(map(len, files.values())) > limits.workspace_bytes // 2:
        return _Refusal(f"the files fill more than half of the workspace's {limits.workspace_bytes} bytes")
    return None


def _bytes_of(path: str) -> int:
    return len(path.encode("utf-8", "surrogatepass"))


def _outcome(report: Mapping[str, Any], job: _Job, limits: Limits) -> Outcome:
    """Reads the server's report. Only here are the bytes that a candidate left parsed."""
    if "out_of_memory" in report:
        return Outcome("crash", error=f"its processes together used more than {limits.memory_bytes} bytes of memory")
    output = report["output"].decode("utf-8", "replace")
    files = {path: base64.b64decode(raw) for path, raw in sorted(report.get("files", {}).items())}
    common: dict[str, Any] = {"output": output, "exit_code": report["exit"], "files": files}
    common |= {"skipped": report.get("skipped", {}), "output_cut": len(report["output"]) >= limits.output_bytes}
    if report["wall_expired"] or report["cpu_expired"]:
        which = f"{limits.wall_seconds} s of wall time" if report["wall_expired"] else f"{limits.cpu_seconds} s of CPU"
        return Outcome("timeout", error=f"stopped after {which}", **common)
    if job.command:
        ended = report["exit"] >= 0
        return Outcome(
            "ok" if ended else "crash", error="" if ended else f"ended by signal {-report['exit']}", **common
        )
    if report["exit"] not in (0, 70):
        return Outcome("crash", error=f"the process ended with {report['exit']} and no result", **common)
    raw = report["result"]
    if len(raw) > limits.file_bytes:
        return Outcome("error", error=f"the result has more than {limits.file_bytes} bytes", **common)
    try:
        result = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return Outcome("crash", error=f"no readable result: {error}"[:200], **common)
    if isinstance(result, dict) and isinstance(result.get("values"), list):
        return Outcome("ok", values=result["values"], **common)
    message = result.get("error") if isinstance(result, dict) else None
    return Outcome("error", error=str(message or "the result holds no values")[:500], **common)
