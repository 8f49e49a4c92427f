"""A program that stays alive in a sandbox of its own and is spoken to over its standard input and output.

For programs that cost too much to start for each job, like a browser. It is not a candidate: there is one job, which
lasts until `close`, and whoever speaks to it sets the time.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Sequence

from noria.sandbox import bubblewrap
from noria.sandbox.cgroups import Group
from noria.sandbox.check import choose
from noria.sandbox.limits import Limits, Profile


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
        waiting = ["/bin/sh", "-c", 'read -r line; exec "$@"', "sh", *argv]
        self._process, pid = bubblewrap.start(limits, profile, waiting)
        self._group.add(pid)
        self._received = bytearray()
        self.send(b"\n")

    def __enter__(self) -> LiveProgram:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, message: bytes) -> None:
        """Raises ProgramEnded."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(message)
            self._process.stdin.flush()
        except (OSError, ValueError) as error:
            raise ProgramEnded(f"the program has ended: {error}; {self._last_words()}") from error

    def receive(self, end: bytes, seconds: float) -> bytes:
        """What it says up to the byte `end`, without it. Raises ProgramEnded; ProgramSilent after `seconds`."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        searched = 0
        while (place := self._received.find(end, searched)) < 0:
            searched = len(self._received)
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise ProgramSilent(f"the program said nothing for {seconds:.0f} s")
            chunk = os.read(self._process.stdout.fileno(), 1 << 20)
            if not chunk:
                raise ProgramEnded(f"the program has ended; {self._last_words()}")
            self._received += chunk
        message = bytes(self._received[:place])
        del self._received[: place + 1]
        return message

    def close(self) -> None:
        """Ends it and all that it started."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):  # unsent bytes for a program that has gone
                    stream.close()
        self._group.remove()

    def _last_words(self) -> str:
        self._process.kill()
        self._process.wait()
        stream = self._process.stderr
        return stream.read(4096).decode("utf-8", "replace").strip()[-500:] if stream and not stream.closed else ""
