"""Clients of a load test, over plain sockets: some ask and check, some leave in mid-reply, some send nonsense."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PATIENCE_SECONDS = 120.0  # for one reply; one that takes longer counts as lost
MOST_RETRIES = 50
LEAVES, MALFORMED, STREAMED = 0.15, 0.15, 0.5  # shares of requests; the last of those that are answered


@dataclass(frozen=True)
class Target:
    """A server, the prompts to ask it, and the reply to each as it was alone."""

    host: str
    port: int
    model: str
    prompts: Sequence[str]
    references: Sequence[str]
    max_tokens: int

    def body(self, prompt: int, stream: bool) -> dict[str, Any]:
        messages = [{"role": "user", "content": self.prompts[prompt]}]
        fields = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": self.max_tokens}
        return {**fields, **({"stream": True, "stream_options": {"include_usage": True}} if stream else {})}


@dataclass
class Tally:
    """What became of the requests of all clients. `problems` are the first few, in words."""

    counts: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, outcome: str, problem: str = "") -> None:
        self.counts[outcome] += 1
        if problem and len(self.problems) < 20:
            self.problems.append(f"{outcome}: {problem}")


class Connection:
    """One HTTP/1.1 connection, kept open from request to request."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, raw: bytes) -> None:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self.host, self.port, limit=1 << 20)
        self._writer.write(raw)
        await self._writer.drain()

    async def post(self, path: str, body: bytes, promised: int | None = None) -> None:
        """Sends a request; `promised` is the length it announces, its own if not given."""
        length = len(body) if promised is None else promised
        head = f"POST {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Type: application/json\r\n"
        await self.send(f"{head}Content-Length: {length}\r\n\r\n".encode() + body)

    async def head(self) -> tuple[int, dict[str, str]]:
        """(status, headers by lower-case name). Raises ConnectionError where the server has closed."""
        assert self._reader is not None
        lines = (await self._exactly_until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines[1:] if line)
        return int(lines[0].split(" ")[1]), {name.lower(): value.strip() for name, _, value in pairs}

    async def parts(self, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
        """The body, as it comes."""
        assert self._reader is not None
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await self._exactly_until(b"\r\n"), 16):
                yield (await self._reader.readexactly(size + 2))[:-2]
            await self._reader.readexactly(2)
        else:
            yield await self._reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("connection", "").lower() == "close":
            self.close()

    async def _exactly_until(self, end: bytes) -> bytes:
        assert self._reader is not None
        try:
            return await self._reader.readuntil(end)
        except asyncio.IncompleteReadError as error:
            raise ConnectionResetError("the server closed the connection") from error

    def close(self) -> None:
        """Leaves at once: what is still coming is refused."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None


async def client(target: Target, seed: int, tally: Tally, until: float) -> None:
    """Asks until the loop's clock passes `until`; every choice it makes comes from its seed."""
    draw, connection, clock = random.Random(seed), Connection(target.host, target.port), asyncio.get_running_loop().time
    while clock() < until:
        kind = draw.random()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                if kind < LEAVES:
                    await leave(target, connection, draw, tally)
                elif kind < LEAVES + MALFORMED:
                    await nonsense(target, connection, draw, tally)
                else:
                    await ask(target, connection, draw, tally)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            tally.add("lost", repr(error))
            connection.close()
    connection.close()


async def ask(target: Target, connection: Connection, draw: random.Random, tally: Tally) -> None:
    """One request, repeated as long as the server is full, and its reply checked."""
    prompt, stream = draw.randrange(len(target.prompts)), draw.random() < STREAMED
    tally.add("asked")
    for _ in range(MOST_RETRIES):
        await connection.post("/v1/chat/completions", json.dumps(target.body(prompt, stream)).encode())
        status, headers = await connection.head()
        body = b"".join([part async for part in connection.parts(headers)])
        if status != 429:
            break
        tally.add("full")
        await asyncio.sleep(float(headers["retry-after"]) * draw.uniform(0.5, 1.5))
    if status != 200:
        tally.add("refused", f"{status}: {body[:200]!r}")
        return
    text, used = (read_stream if stream else read_whole)(body)
    tally.tokens += used
    outcome = verdict(text, prompt, target.references)
    tally.add(outcome, "" if outcome == "right" else f"prompt {prompt}: {text!r}, not {target.references[prompt]!r}")


def verdict(text: str | None, prompt: int, references: Sequence[str]) -> str:
    """right; mixed (what another prompt gets); cut (an end is missing); wrong (anything else)."""
    if text is None:
        return "cut"
    if text == references[prompt]:
        return "right"
    return "mixed" if text in references else "wrong"


def read_whole(body: bytes) -> tuple[str | None, int]:
    """(text, sampled tokens) of a reply in one body."""
    reply = json.loads(body)
    return reply["choices"][0]["message"]["content"], reply["usage"]["completion_tokens"]


def read_stream(body: bytes) -> tuple[str | None, int]:
    """(text, sampled tokens) of a streamed reply; no text where its end is missing."""
    events = [event.removeprefix("data: ") for event in body.decode().split("\n\n") if event]
    if events[-1] != "[DONE]":
        return None, 0
    chunks = [json.loads(event) for event in events[:-1]]
    deltas = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
    finished = any(choice["finish_reason"] for chunk in chunks for choice in chunk["choices"])
    return ("".join(deltas) if finished else None), chunks[-1]["usage"]["completion_tokens"]


async def leave(target: Target, connection: Connection, draw: random.Random, tally: Tally) -> None:
    """A request whose client goes: at once, while it waits, or in the middle of the stream."""
    stream = draw.random() < STREAMED
    await connection.post(
        "/v1/chat/completions", json.dumps(target.body(draw.randrange(len(target.prompts)), stream)).encode()
    )
    when = draw.randrange(3)
    if when == 1:
        await asyncio.sleep(draw.random() * 0.3)
    elif when == 2 and stream:
        _, headers = await connection.head()
        parts = connection.parts(headers)
        for _ in range(draw.randrange(1, 6)):
            await anext(parts, b"")
    connection.close()
    tally.add("left")


async def nonsense(target: Target, connection: Connection, draw: random.Random, tally: Tally) -> None:
    """A malformed request; right is a 4xx in OpenAI's error shape, and a server that goes on."""
    good = json.dumps(target.body(0, stream=False)).encode()
    name, body = draw.choice(malformed(target, good, draw))
    if name == "half a body":  # its client goes, so there is nobody to answer
        await connection.post("/v1/chat/completions", body, promised=len(body) + 100)
        connection.close()
        tally.add("left")
        return
    tally.add("malformed")
    if name == "no HTTP":
        connection.close()
        await connection.send(body)
        status, _ = await connection.head()
        connection.close()
        tally.add(
            "malformed, answered" if status == 400 else "malformed, wrong status", f"{name}: {status}" * (status != 400)
        )
        return
    path = "/v1/completions" if name == "wrong endpoint" else "/v1/chat/completions"
    await connection.post(path, body)
    status, headers = await connection.head()
    told = b"".join([part async for part in connection.parts(headers)])
    fits = 400 <= status < 500 and set(json.loads(told)["error"]) == {"message", "type", "param", "code"}
    tally.add(
        "malformed, answered" if fits else "malformed, wrong answer", "" if fits else f"{name}: {status} {told[:200]!r}"
    )


def malformed(target: Target, good: bytes, draw: random.Random) -> list[tuple[str, bytes]]:
    """(what is wrong, the body)."""
    fields = json.loads(good)
    return [
        ("no JSON", good[: draw.randrange(1, len(good) - 1)]),
        ("no UTF-8", good.replace(b"user", b"us\xff\xfe")),
        ("deep", b'{"model": "m", "messages": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"),
        ("huge", b'{"model": "' + b"x" * (2 << 20) + b'"}'),
        ("wrong type", json.dumps({**fields, "temperature": [draw.random()]}).encode()),
        ("unknown parameter", json.dumps({**fields, "temprature": 0}).encode()),
        ("not a number", good.replace(b'"temperature": 0', b'"temperature": NaN')),
        (
            "too long",
            json.dumps({**fields, "messages": [{"role": "user", "content": "far too long " * 9000}]}).encode(),
        ),
        ("another model", json.dumps({**fields, "model": "gpt-9"}).encode()),
        ("empty", b""),
        ("an array", b"[" + good + b"]"),
        ("wrong endpoint", good),
        ("half a body", good[: len(good) // 2]),
        ("no HTTP", bytes(draw.randrange(256) for _ in range(64)) + b"\r\n\r\n"),
    ]
