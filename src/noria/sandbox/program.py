"""A program that stays alive in a sandbox of its own and is spoken to over its standard input and output, which
are one socket.

For programs that cost too much to start for each job, like a browser. It is not a candidate: there is one job, which
lasts until `close`, and whoever speaks to it sets the time.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Sequence

from noria.sandbox import bubblewrap
from noria.sandbox.cgroups import Group
from noria.sandbox.check import choose
from noria.sandbox.limits import Limits, Profile

SEND_SECONDS = 60.0  # a program that takes nothing for so long is given up


class ProgramEnded(RuntimeError):
    """The program has gone."""


class ProgramSilent(RuntimeError):
    """The program said nothing for as long as it was given. It still runs."""


class LiveProgram:
    """`argv` started in a sandbox. Of `limits`, memory, processes and workspace hold, for all its processes together.

    Raises SandboxUnavailable where this machine can't sandbox as the profile asks. Use as a context manager.
    """

    def __init__(self, argv: Sequence[str], limits: Limits, profile: Profile) -> None:
        choose("bubblewrap", None, profile)
        self._group = Group(
            limits.memory_bytes + limits.workspace_bytes + 2 * profile.scratch_bytes, limits.processes + 2
        )
        # The program waits for a line until it is in its group: so nothing that it starts can be outside.
        waiting = ["/bin/sh", "-c", 'read -r line; exec "$@" >&0', "sh", *argv]
        self._channel, theirs = socket.socketpair()
        with theirs:
            self._process, pid = bubblewrap.start(limits, profile, waiting, theirs.fileno())
        self._group.add(pid)
        self._channel.settimeout(SEND_SECONDS)
        self._received = bytearray()
        self._owner = os.getpid()
        self.send(b"\n")

    def __enter__(self) -> LiveProgram:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, message: bytes) -> None:
        """Raises ProgramEnded."""
        try:
            self._channel.sendall(message)
        except OSError as error:
            raise ProgramEnded(f"the program has ended: {error}; {self._last_words()}") from error

    def receive(self, end: bytes, seconds: float) -> bytes:
        """What it says up to the byte `end`, without it. Raises ProgramEnded; ProgramSilent after `seconds`."""
        deadline = time.monotonic() + seconds
        searched = 0
        while (place := self._received.find(end, searched)) < 0:
            searched = len(self._received)
            try:
                ready, _, _ = select.select([self._channel], [], [], max(0.0, deadline - time.monotonic()))
                chunk = self._channel.recv(1 << 20) if ready else b""
            except (OSError, ValueError) as error:  # reset, or closed by us
                raise ProgramEnded(f"the program has ended: {error}; {self._last_words()}") from error
            if not ready:
                raise ProgramSilent(f"the program said nothing for {seconds:.0f} s")
            if not chunk:
                raise ProgramEnded(f"the program has ended; {self._last_words()}")
            self._received += chunk
        message = bytes(self._received[:place])
        del self._received[: place + 1]
        return message

    def close(self) -> None:
        """Ends it and all that it started. In a fork of the process that started it: does nothing."""
        if self._owner != os.getpid():
            return
        self._process.kill()
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()
        self._channel.close()
        self._group.remove()

    def _last_words(self) -> str:
        self._process.kill()
        self._process.wait()
        stream = self._process.stderr
        return stream.read(4096).decode("utf-8", "replace").strip()[-500:] if stream and not stream.closed else ""
