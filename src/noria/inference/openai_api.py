"""An OpenAI-compatible server as a Starlette app: chat completions (streamed or not), models, health, feedback.

The app knows nothing of logs or consent: `record` is called with each answered request before its last bytes are sent,
`signal` with each piece of feedback. Both run in a thread and may block.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from noria.data.chat_tokenizer import ChatTokenizer
from noria.inference import openai_schema as schema
from noria.inference.engine import Engine
from noria.inference.openai_schema import ApiError, ChatRequest, TokenLogprob
from noria.inference.serving import EngineDriver, LiveRequest, ServedChoice, ServedRequest

LOG = logging.getLogger("noria.serving")
FINISH = {"stop": "stop", "length": "length", "aborted": "stop"}


@dataclass(frozen=True)
class ServerLimits:
    """What one server takes on. `live_choices` counts replies being sampled or queued; beyond it clients get a 429."""

    live_choices: int = 64
    body_bytes: int = 1 << 20


@dataclass
class ChatServer:
    """The live state behind the routes: one engine, one model name, the requests in flight."""

    engine: Engine
    tokenizer: ChatTokenizer
    name: str
    fingerprint: str
    record: Callable[[ServedRequest], None]
    signal: Callable[[str, str, int], bool]
    consents: Sequence[str] = ("none",)
    signals: Sequence[str] = ("thumbs_up", "thumbs_down")
    limits: ServerLimits = field(default_factory=ServerLimits)
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.driver = EngineDriver(self.engine, self.limits.live_choices)
        self._tasks: set[asyncio.Task[None]] = set()

    def app(self, routes: Sequence[BaseRoute] = (), middleware: Sequence[Any] = ()) -> Starlette:
        """The application; `routes` come after the API's own."""
        own = [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/feedback", self.feedback, methods=["POST"]),
            Route("/health", self.health),
        ]
        handlers: dict[Any, Any] = {ApiError: _api_error, HTTPException: _http_error, Exception: _server_error}
        return Starlette(
            routes=[*own, *routes], middleware=list(middleware), exception_handlers=handlers, lifespan=self._lifespan
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(self.driver.close)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)

    # -- routes --

    async def chat(self, request: Request) -> Response:
        ask = schema.parse_chat_request(await self._json(request))
        self._check_model(ask.model)
        consent = ask.metadata.get("consent", self.consents[0])
        if consent not in self.consents:
            raise ApiError(
                400,
                f"consent {consent!r} is unknown; allowed: {', '.join(self.consents)}.",
                "metadata.consent",
                "invalid_value",
            )
        prompt_ids = self.tokenizer.render(ask.messages)
        context = self.engine.context
        if len(prompt_ids) >= context:
            raise ApiError(
                400,
                f"This model's maximum context length is {context} tokens, and the reply needs at least 1 of them. "
                f"However, your messages resulted in {len(prompt_ids)} tokens. Please shorten the messages.",
                "messages",
                "context_length_exceeded",
            )
        if not self.driver.reserve(ask.n):
            raise ApiError(
                429,
                f"The server is full: {self.driver.live} of {self.driver.capacity} replies are being made. Try again.",
                None,
                "rate_limit_exceeded",
            )
        seed = secrets.randbits(63) if ask.seed is None else ask.seed
        live = LiveRequest(self.driver, self.tokenizer, ask, prompt_ids, seed)
        reply = _Reply(self, request, live, consent)
        return await (reply.streamed() if ask.stream else reply.whole())

    async def models(self, request: Request) -> Response:
        return JSONResponse(schema.model_list(self.name, self.created))

    async def model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(schema.model_entry(self.name, self.created))

    async def health(self, request: Request) -> Response:
        running, waiting = self.engine.load
        failure = self.driver.failure
        body = {"status": "failing" if failure else "ok", "model": self.name, "running": running, "waiting": waiting}
        return JSONResponse({**body, **({"error": repr(failure)} if failure else {})}, 503 if failure else 200)

    async def feedback(self, request: Request) -> Response:
        body = await self._json(request)
        if not isinstance(body, dict) or set(body) - {"id", "signal", "choice"}:
            raise ApiError(400, "feedback takes an object with id, signal and choice.")
        request_id, name, choice = body.get("id"), body.get("signal"), body.get("choice", 0)
        if not isinstance(request_id, str):
            raise ApiError(400, "'id' must be the id of a chat completion.", "id", "invalid_type")
        if not isinstance(name, str) or name not in self.signals:
            raise ApiError(400, f"'signal' is {name!r}; allowed: {', '.join(self.signals)}.", "signal", "invalid_value")
        if isinstance(choice, bool) or not isinstance(choice, int) or not 0 <= choice < schema.MAX_CHOICES:
            raise ApiError(
                400, f"'choice' must be an integer from 0 to {schema.MAX_CHOICES - 1}.", "choice", "invalid_type"
            )
        if not await asyncio.to_thread(self.signal, request_id, name, choice):
            raise ApiError(404, f"No reply {request_id!r} (choice {choice}) is known.", "id", "not_found")
        return JSONResponse({"ok": True})

    # -- parts --

    def _check_model(self, name: str) -> None:
        if name != self.name:
            message = f"The model {name!r} does not exist; this server has {self.name!r}."
            raise ApiError(404, message, "model", "model_not_found")

    async def _json(self, request: Request) -> Any:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(
                400, f"Content-Type must be application/json, not {kind or 'empty'}.", None, "invalid_content_type"
            )
        raw = bytearray()
        async for part in request.stream():
            raw += part
            if len(raw) > self.limits.body_bytes:
                raise ApiError(413, f"The body exceeds {self.limits.body_bytes} bytes.", None, "request_too_large")
        try:
            body = json.loads(raw)
            # A lone surrogate (legal in JSON, text in no encoding) can neither be stored nor sent back: it becomes "?".
            clean = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace") if b"\\u" in raw else b""
            return json.loads(clean) if clean else body
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"The body is not valid JSON: {error}", None, "invalid_json") from error

    def keep(self, task: asyncio.Task[None]) -> None:
        """The event loop holds tasks weakly; a reply whose client has left must still be logged."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Reply:
    """Answers one request: samples it in a task of its own, which also logs it, whatever becomes of the client."""

    def __init__(self, server: ChatServer, request: Request, live: LiveRequest, consent: str) -> None:
        self.server, self.request, self.live, self.consent = server, request, live, consent
        self.id = f"chatcmpl-{secrets.token_hex(16)}"
        self.created = int(time.time())
        self.head = {
            "id": self.id,
            "created": self.created,
            "model": server.name,
            "system_fingerprint": server.fingerprint,
        }
        self.tokens: list[list[TokenLogprob]] = [[] for _ in range(live.ask.n)]

    @property
    def ask(self) -> ChatRequest:
        return self.live.ask

    async def whole(self) -> Response:
        """The reply as one JSON body, sent after it was logged."""
        done: asyncio.Future[tuple[ServedChoice, ...]] = asyncio.get_running_loop().create_future()

        async def make() -> None:
            try:
                choices = await self._sample(lambda index, text, tokens: self.tokens[index].extend(tokens))
            except Exception as error:  # noqa: BLE001 - handed to the waiting request, which answers with it
                if not done.cancelled():
                    done.set_exception(error)
            else:
                if not done.cancelled():
                    done.set_result(choices)

        self.server.keep(asyncio.create_task(make()))
        choices = await done
        body = [
            schema.choice(index, choice.text, FINISH[choice.finish], self.tokens[index] if self.ask.logprobs else None)
            for index, choice in enumerate(choices)
        ]
        fingerprint = self.server.fingerprint
        return JSONResponse(
            schema.completion(self.id, self.created, self.server.name, fingerprint, body, self._usage(choices))
        )

    async def streamed(self) -> Response:
        """Server-sent events. The chunks that say how each choice ended are sent after the reply was logged."""
        lines: asyncio.Queue[str | None] = asyncio.Queue()

        def send(**parts: Any) -> None:
            lines.put_nowait(_event(schema.chunk(self.head, **parts)))

        def emit(index: int, text: str, tokens: list[TokenLogprob]) -> None:
            send(index=index, delta={"content": text}, tokens=list(tokens) if self.ask.logprobs else None)

        async def make() -> None:
            try:
                for index in range(self.ask.n):
                    send(index=index, delta={"role": "assistant", "content": ""})
                choices = await self._sample(emit)
                for index, choice in enumerate(choices):
                    send(index=index, finish=FINISH[choice.finish])
                if self.ask.include_usage:
                    send(index=None, used=self._usage(choices))
                lines.put_nowait("data: [DONE]\n\n")
            except Exception as error:
                LOG.exception("reply %s failed", self.id)
                lines.put_nowait(_event(_failure(error).body()))
            finally:
                lines.put_nowait(None)

        self.server.keep(asyncio.create_task(make()))

        async def body() -> AsyncIterator[str]:
            try:
                while (line := await lines.get()) is not None:
                    yield line
            finally:
                self.live.abort()

        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(body(), media_type="text/event-stream", headers=headers)

    async def _sample(self, emit: Callable[[int, str, list[TokenLogprob]], None]) -> tuple[ServedChoice, ...]:
        try:
            choices = await self.live.run(emit, self.request.is_disconnected)
        finally:
            self.server.driver.release(self.ask.n)
        served = ServedRequest(
            request_id=self.id,
            user=self.ask.user,
            consent=self.consent,
            messages=self.ask.messages,
            sampling={**self.ask.sampling(), "seed": self.live.seed},
            prompt_tokens=len(self.live.prompt_ids),
            choices=choices,
            total_seconds=time.monotonic() - self.live.started,
            first_token_seconds=self.live.first_token_seconds,
        )
        await asyncio.to_thread(self.server.record, served)
        return choices

    def _usage(self, choices: Sequence[ServedChoice]) -> dict[str, int]:
        return schema.usage(len(self.live.prompt_ids), sum(len(choice.token_ids) for choice in choices))


def _event(body: Any) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _failure(error: BaseException) -> ApiError:
    if isinstance(error, ApiError):
        return error
    return ApiError(
        500, f"The server failed while answering ({type(error).__name__}); its log says more.", None, "internal_error"
    )


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    headers = {"Retry-After": "1"} if error.status == 429 else None
    return JSONResponse(error.body(), error.status, headers=headers)


async def _http_error(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(ApiError(error.status_code, message).body(), error.status_code, headers=error.headers)


async def _server_error(request: Request, error: Exception) -> Response:
    LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONResponse(_failure(error).body(), 500)
