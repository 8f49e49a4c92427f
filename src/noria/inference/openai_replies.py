"""Answering one request, streamed or whole: sampled in a task of its own, which also logs it, whatever becomes of the
client. A client that leaves ends its request at the engine's next step."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from noria.inference.metrics import ServerMetrics
from noria.inference.openai_schema import ApiError
from noria.inference.serving import LiveRequest, ServedChoice, ServerStopping, TokenLogprob

T = TypeVar("T")
LOG = logging.getLogger("noria.serving")
STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Shape(Protocol):
    """The wire format of one endpoint, for one request."""

    def opening(self) -> list[dict[str, Any]]: ...

    def piece(self, index: int, text: str, tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]: ...

    def ending(self, choices: Sequence[ServedChoice]) -> list[dict[str, Any]]: ...

    def usage(self, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]: ...

    def whole(self, choices: Sequence[ServedChoice], prompt_tokens: int) -> dict[str, Any]: ...


@dataclass
class Reply:
    """One request being answered. `done` is awaited with the choices before the client gets the last bytes."""

    id: str
    endpoint: str
    live: LiveRequest
    shape: Shape
    metrics: ServerMetrics
    prompt_tokens: int
    done: Callable[[tuple[ServedChoice, ...]], Awaitable[None]]
    tasks: set[asyncio.Task[Any]]
    include_usage: bool = False
    _last_token: dict[int, float] = field(default_factory=dict)
    _left: bool = False

    async def whole(self, request: Request) -> Response:
        """The reply as one JSON body."""
        self.shape.opening()  # it keeps what it says, as it does of every piece
        task = self._kept(self._sample(self.shape.piece))
        async with _watching(request.receive, self._client_left):
            try:
                choices = await asyncio.shield(task)
            except Exception as error:  # `_sample` has logged it
                raise as_api_error(error) from error
        return JSONResponse(self.shape.whole(choices, self.prompt_tokens), headers=self._headers())

    def streamed(self) -> Response:
        """Server-sent events. The chunks that say how each choice ended are sent after the reply was logged."""
        lines: asyncio.Queue[str | None] = asyncio.Queue()

        def send(chunks: Sequence[Mapping[str, Any]]) -> None:
            for chunk in chunks:
                lines.put_nowait(_event(chunk))

        async def make() -> None:
            try:
                send(self.shape.opening())
                choices = await self._sample(lambda *piece: send(self.shape.piece(*piece)))
                send(self.shape.ending(choices))
                if self.include_usage:
                    send([self.shape.usage(self.prompt_tokens, sum(len(choice.token_ids) for choice in choices))])
                lines.put_nowait("data: [DONE]\n\n")
            except Exception as error:  # noqa: BLE001 - told to the client; `_sample` has logged it
                lines.put_nowait(_event(as_api_error(error).body()))
            finally:
                lines.put_nowait(None)

        self._kept(make())
        return EventStream(lines, self._client_left, STREAM_HEADERS | self._headers())

    def _kept(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Started as a task. The event loop holds tasks weakly; one whose client has left must still be logged."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen: where the client has left, no one else looks

    def _headers(self) -> dict[str, str]:
        return {"X-Request-Id": self.id}

    def _client_left(self) -> None:
        self._left = True
        self.live.abort()

    async def _sample(self, piece: Callable[[int, str, list[TokenLogprob]], Any]) -> tuple[ServedChoice, ...]:
        outcome = "failed"
        self.metrics.prompt_tokens.add(self.prompt_tokens)
        try:
            choices = await self.live.run(piece, self._tick)
            self.metrics.request_seconds.observe(time.monotonic() - self.live.started)
            await self.done(choices)
            outcome = "disconnected" if self._left else "ok"
            return choices
        except ServerStopping:
            raise
        except Exception:
            LOG.exception("reply %s failed", self.id)
            raise
        finally:
            self.metrics.requests.add(1, self.endpoint, outcome)
            self.live.driver.release(len(self.live.wanted))

    def _tick(self, index: int, tokens: int) -> None:
        now = time.monotonic()
        self.metrics.completion_tokens.add(tokens)
        if index in self._last_token:
            self.metrics.inter_token.observe((now - self._last_token[index]) / tokens, tokens)
        elif len(self._last_token) == 0:
            self.metrics.first_token.observe(now - self.live.started)
        self._last_token[index] = now


class EventStream(Response):
    """Sends lines as they are queued, up to a None; calls `on_leave` at once where the client goes before that."""

    def __init__(
        self, lines: asyncio.Queue[str | None], on_leave: Callable[[], None], headers: Mapping[str, str]
    ) -> None:
        self.status_code, self.background, self.body = 200, None, b""
        self._lines, self._on_leave, self._left = lines, on_leave, False
        self.init_headers({"Content-Type": "text/event-stream; charset=utf-8", **headers})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with _watching(receive, self._client_left):
            try:
                while (line := await self._lines.get()) is not None and not self._left:
                    await send({"type": "http.response.body", "body": line.encode(), "more_body": True})
            except BaseException:
                self._client_left()
                raise
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _client_left(self) -> None:
        self._left = True
        self._lines.put_nowait(None)  # no one waits for more
        self._on_leave()


@contextlib.asynccontextmanager
async def _watching(receive: Receive, on_leave: Callable[[], None]) -> AsyncIterator[None]:
    """Calls `on_leave` once the client has left."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        on_leave()

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()


def _event(body: Any) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


def as_api_error(error: BaseException) -> ApiError:
    """What the client is told of `error`."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ServerStopping):
        return ApiError(503, "The server is being stopped; ask again.", None, "server_stopping", 5)
    message = f"The server failed while answering ({type(error).__name__}); its log says more."
    return ApiError(500, message, None, "internal_error")
