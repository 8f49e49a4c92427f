"""A transport to an MCP server that we start: lines of JSON on its stdin and stdout, with a bound on each line.

The SDK's own transport keeps an endless line in memory for as long as it comes; this one ends such a server.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp.types import jsonrpc_message_adapter

from noria.sandbox import confined

LEAVING_SECONDS = 2.0
TAIL_BYTES = 2000  # of what a server wrote to stderr, for the message when it ends


@dataclass(frozen=True)
class Command:
    """How to start a stdio server: its `argv`, folder, and what is added to a bare environment.

    With `confine` it runs in bubblewrap: no network, no files but the system's, the interpreter's and `readable` and
    `writable` folders. Without, it runs as this user, with all that this user may do.
    """

    argv: tuple[str, ...]
    folder: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    confine: bool = False
    readable: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if not self.argv:
            raise ValueError("an MCP server's command is empty; give the program and its arguments")

    def full_argv(self) -> list[str]:
        if not self.confine:
            return list(self.argv)
        return confined(self.argv, self.readable, self.writable, self.folder, self.environment)


@dataclass
class Ending:
    """Why the server ended, as far as it is known, and the last it wrote to stderr."""

    reason: str = "it closed its output"
    tail: bytes = b""

    def __str__(self) -> str:
        said = self.tail.decode("utf-8", "replace").strip()
        return f"{self.reason}; it wrote last: {said[-400:]}" if said else self.reason


@contextlib.asynccontextmanager
async def bounded_stdio(command: Command, line_bytes: int, ending: Ending) -> AsyncIterator[Any]:
    """The streams of a server that lives as long as the context. Raises OSError where it can't be started."""
    process = await anyio.open_process(
        command.full_argv(),
        env=get_default_environment() | dict(command.environment),
        cwd=None if command.confine else command.folder,
        start_new_session=True,  # its own children end with it
    )
    to_us, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    outgoing, from_us = anyio.create_memory_object_stream[SessionMessage](0)

    async def read() -> None:
        assert process.stdout is not None
        gone = (anyio.ClosedResourceError, anyio.BrokenResourceError, anyio.EndOfStream, OSError)
        with contextlib.suppress(*gone):
            async with to_us:
                async for line in _lines(process.stdout, line_bytes, ending):
                    with contextlib.suppress(ValueError):  # some servers print to stdout what belongs into a log
                        await to_us.send(SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False)))

    async def write() -> None:
        assert process.stdin is not None
        try:
            async for message in from_us:
                text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                await process.stdin.send(text.encode() + b"\n")
        except (anyio.ClosedResourceError, anyio.BrokenResourceError, OSError):
            await to_us.aclose()  # who waits for an answer is told

    async def listen() -> None:
        assert process.stderr is not None
        with contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError, OSError):
            async for chunk in process.stderr:
                ending.tail = (ending.tail + chunk)[-TAIL_BYTES:]

    async with anyio.create_task_group() as tasks:
        for work in (read, write, listen):
            tasks.start_soon(work)
        try:
            yield incoming, outgoing
        finally:
            with anyio.CancelScope(shield=True):
                await _end(process)
                for stream in (incoming, outgoing, to_us, from_us):
                    await stream.aclose()
            tasks.cancel_scope.cancel()


async def _lines(stream: anyio.abc.ByteReceiveStream, most: int, ending: Ending) -> AsyncIterator[bytes]:
    """The lines of `stream` until it ends, or until one is longer than `most` bytes."""
    parts: list[bytes] = []
    length = 0
    async for chunk in stream:
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            if length + len(part) > most:
                break
            yield b"".join([*parts, part])
            parts, length = [], 0
        else:
            parts, length = [*parts, rest], length + len(rest)
            if length <= most:
                continue
        ending.reason = f"it sent a message of more than {most} bytes"
        return


async def _end(process: anyio.abc.Process) -> None:
    """Closes its stdin, waits, then kills it and all that it started."""
    assert process.stdin is not None
    with contextlib.suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
        await process.stdin.aclose()
    for kind in (None, signal.SIGTERM, signal.SIGKILL):
        if kind is not None:
            _signal(process.pid, kind)
        with anyio.move_on_after(LEAVING_SECONDS):
            while process.returncode is None:
                await anyio.sleep(0.01)
            break
    _signal(process.pid, signal.SIGKILL)  # children that outlived it
    await process.aclose()


def _signal(group: int, kind: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, kind)
