"""One server in its sandbox: started when first needed, asked one job at a time, started again should it die."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time
from collections.abc import Mapping
from typing import Any

from noria.sandbox.bubblewrap import start_server
from noria.sandbox.limits import Limits

# The server itself enforces wall_seconds; this long after it, the server counts as hung and is killed.
GRACE_SECONDS = 60.0
MAX_REPLY_BYTES = 256 << 20


class ServerDied(RuntimeError):
    """The sandbox ended or hung twice on one job."""


class Connection:
    def __init__(self, limits: Limits, filters: Mapping[str, str]) -> None:
        self._limits = limits
        self._filters = dict(filters)
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, job: str) -> dict[str, Any]:
        """The report on one job. A server that dies is replaced and asked once more, then ServerDied is raised."""
        reason = ""
        for _ in range(2):
            try:
                if self._process is None:
                    self._start()
                return self._exchange(job)
            except (OSError, EOFError, ValueError) as error:
                reason = f"{type(error).__name__}: {error}; {self._last_words()}"
                self.close()
        raise ServerDied(f"the sandbox ended twice while it ran this job: {reason}")

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):  # unsent bytes for a server that has gone
                    stream.close()

    def _start(self) -> None:
        self._process = start_server(self._limits)
        hello = self._exchange(json.dumps({"filters": self._filters}))
        if hello.get("ready") is not True:
            raise ValueError(f"the sandbox's server said {hello}")

    def _exchange(self, line: str) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        process.stdin.write(line.encode() + b"\n")
        process.stdin.flush()
        deadline = time.monotonic() + self._limits.wall_seconds + GRACE_SECONDS
        received = bytearray()
        while not received.endswith(b"\n"):
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(process.stdout.fileno(), 1 << 20) if ready else b""
            if not ready:
                raise TimeoutError("no reply")
            if not chunk:
                raise EOFError("the server ended")
            received += chunk
            if len(received) > MAX_REPLY_BYTES:
                raise ValueError("the reply is too long")
        report = json.loads(received)
        assert isinstance(report, dict)
        return report

    def _last_words(self) -> str:
        process = self._process
        if process is None or process.stderr is None:
            return ""
        process.kill()
        process.wait()
        return process.stderr.read(4096).decode("utf-8", "replace").strip()[-500:]
