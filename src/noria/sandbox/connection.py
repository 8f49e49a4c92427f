"""One server in its sandbox: started when first needed, asked one job at a time, started again should it die."""

from __future__ import annotations

import base64
import json
import os
import platform
import shutil
import socket
import struct
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from noria.sandbox import bubblewrap, landlock
from noria.sandbox.cgroups import Group
from noria.sandbox.check import Report
from noria.sandbox.limits import MEGABYTE, Limits, Profile
from noria.sandbox.seccomp import inner_filter, outer_filter, single_command_filter

# The server itself enforces wall_seconds; this long after it, the server counts as hung and is killed.
GRACE_SECONDS = 60.0
MAX_REPLY_BYTES = 512 << 20
SERVER_BYTES = 64 * MEGABYTE  # of the server's own, within the group that bounds it together with its candidates
HEADER = struct.Struct("!QB")
FOLDER = Path(__file__).parent


def server_source() -> str:
    """Both files that run inside as one text: noria itself is not there to import from."""
    leavings, server = ((FOLDER / name).read_text(encoding="utf-8") for name in ("leavings.py", "server.py"))
    own = "".join(line for line in server.splitlines(keepends=True) if not line.startswith("from noria."))
    return f"{leavings}\n{own}"


SERVER_SOURCE = server_source()


class ServerDied(RuntimeError):
    """The sandbox ended or hung twice on one job."""


class Connection:
    def __init__(self, limits: Limits, profile: Profile, report: Report) -> None:
        self._limits, self._profile, self._report = limits, profile, report
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._group: Group | None = None
        self._folder: str | None = None  # on the host, where the sandbox has no namespaces
        self._owner = os.getpid()

    @property
    def pid(self) -> int:
        """The process that was started; 0 while there is none."""
        return self._process.pid if self._process else 0

    def ask(self, job: bytes, collect: bool) -> dict[str, Any]:
        """The report on one job. A server that dies is replaced and asked once more, then ServerDied is raised.

        Memory that the job's processes used up together is no fault of the server, even where it is the one to go.
        """
        if self._owner != os.getpid():
            self.leave_to_parent()
        reason, kills = "", 0
        for _ in range(2):
            try:
                if self._process is None:
                    self._start()
                kills = self._group.memory_kills() if self._group else 0
                return self._exchange(HEADER.pack(len(job), collect) + job)
            except (OSError, EOFError, ValueError) as error:
                killed = self._group is not None and self._group.memory_kills() > kills
                reason = f"{type(error).__name__}: {error}; {self._last_words()}"
                self.close()
                if killed:
                    return {"out_of_memory": True}
            except BaseException:  # an interrupt leaves a report unread, which the next job would be given
                self.close()
                raise
        raise ServerDied(f"the sandbox ended twice while it ran this job: {reason}")

    def close(self) -> None:
        """Ends the server. In a fork of the process that started it: only lets go of it."""
        if self._owner != os.getpid():
            self.leave_to_parent()
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            if process.stderr is not None:
                process.stderr.close()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._group is not None:
            self._group.remove()
            self._group = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def leave_to_parent(self) -> None:
        """A fork has a copy of all this, and the server belongs to its parent: it may neither end nor ask it."""
        if self._process is not None:
            self._process.returncode = 0  # else Python would warn of a child that was never waited for
            if self._process.stderr is not None:
                self._process.stderr.close()
        if self._channel is not None:
            self._channel.close()
        self._process = self._channel = self._group = self._folder = None
        self._owner = os.getpid()

    def _start(self) -> None:
        limits, profile = self._limits, self._profile
        command = [*bubblewrap.interpreter(), "-c", SERVER_SOURCE]
        self._group = Group(
            limits.memory_bytes + limits.workspace_bytes + 2 * profile.scratch_bytes + SERVER_BYTES,
            limits.processes + 2,  # the server, and whoever reports
        )
        self._channel, theirs = socket.socketpair()
        with theirs:
            if self._report.kind == "bubblewrap":
                self._process, pid = bubblewrap.start(limits, profile, command, theirs.fileno())
            else:
                self._process, self._folder = landlock.start(command, theirs.fileno(), bubblewrap.identity())
                pid = self._process.pid
        self._group.add(pid)  # before it is told anything, so before it forks
        hello = self._exchange(json.dumps(self._setup()).encode() + b"\n")
        if hello.get("ready") is not True:
            raise ValueError(f"the sandbox's server said {hello}")

    def _setup(self) -> dict[str, Any]:
        profile, report, machine = self._profile, self._report, platform.machine()
        folders = bubblewrap.folders(profile) if self._folder is None else [self._folder]
        programs = {"inner": inner_filter(machine), "single": single_command_filter(machine)}
        always = []
        confined = None
        if report.kind == "landlock":
            programs["outer"] = outer_filter(machine, owner=True, signals=landlock.signals_stay_inside())
            always = ["outer"]
            confined = asdict(landlock.confinement(folders[0], bubblewrap.readable_paths(profile)))
        return {
            "limits": asdict(self._limits),
            "folders": folders,
            "filters": {name: base64.b64encode(program).decode() for name, program in programs.items()},
            "for_functions": ["inner", *always],
            "for_commands": [*([] if report.process_limit else ["single"]), *always],
            "environment": _environment(folders[0], profile),
            "address_space": profile.bounds_address_space,
            "counted": self._group is not None and self._group.counts,
            "landlock": confined,
        }

    def _exchange(self, message: bytes) -> dict[str, Any]:
        """Sends, and gives the report that comes back; `result` and `output` are read from the files that it brings."""
        channel = self._channel
        assert channel is not None
        deadline = time.monotonic() + self._limits.wall_seconds + GRACE_SECONDS
        channel.settimeout(self._limits.wall_seconds + GRACE_SECONDS)
        channel.sendall(message)
        received, descriptors = bytearray(), []
        try:
            while not received.endswith(b"\n"):
                channel.settimeout(max(0.001, deadline - time.monotonic()))
                chunk, fds, _, _ = socket.recv_fds(channel, 1 << 20, 2)
                descriptors += fds
                if not chunk:
                    raise EOFError("the server ended")
                received += chunk
                if len(received) > MAX_REPLY_BYTES:
                    raise ValueError("the reply is too long")
            report = json.loads(received)
            assert isinstance(report, dict)
            if descriptors:
                result, output = descriptors
                report["result"] = os.pread(result, self._limits.file_bytes + 1, 0)
                report["output"] = os.pread(output, self._limits.output_bytes, 0)
            return report
        finally:
            for fd in descriptors:
                os.close(fd)

    def _last_words(self) -> str:
        process = self._process
        if process is None or process.stderr is None:
            return ""
        process.kill()
        process.wait()
        return process.stderr.read(4096).decode("utf-8", "replace").strip()[-500:]


def _environment(home: str, profile: Profile) -> dict[str, str]:
    programs = f"/usr/bin:/bin:{os.path.dirname(bubblewrap.executable())}"
    common = {"PATH": programs, "HOME": home, "LANG": "C.UTF-8", **bubblewrap.FIXED}
    return common | ({} if profile.scratch_bytes else {"TMPDIR": home}) | dict(profile.environment)
