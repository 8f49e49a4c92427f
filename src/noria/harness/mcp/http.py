"""A transport to an MCP server at a URL (streamable HTTP), with a bound on what one answer may hold.

The SDK bounds events of a stream by itself, but not plain bodies.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx2
from mcp.client.streamable_http import streamable_http_client

TIMEOUT = httpx2.Timeout(30, read=300)  # a stream of events may be silent for long; calls have a timeout of their own


@contextlib.asynccontextmanager
async def bounded_http(url: str, message_bytes: int) -> AsyncIterator[Any]:
    """The streams of a connection to `url`."""
    async with (
        httpx2.AsyncClient(transport=_Bounded(message_bytes), timeout=TIMEOUT) as http,
        streamable_http_client(url, http_client=http, max_sse_event_size=message_bytes) as streams,
    ):
        yield streams


class _Bounded(httpx2.AsyncHTTPTransport):
    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = _Counted(response.stream, self._most)
        return response


class _Counted(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream, most: int) -> None:
        self._inner, self._most = inner, most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        seen = 0
        async for chunk in self._inner:
            seen += len(chunk)
            if seen > self._most:
                raise httpx2.ReadError(f"it sent a message of more than {self._most} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()
