"""An OpenAI-compatible server as a Starlette app: chat completions, completions, models, feedback, health, metrics.

The app knows nothing of logs, consent or keys: `record` is called with each answered request before its last bytes are
sent, `signal` with each piece of feedback (both run in a thread and may block), and who asks is read from the request's
`state.user`, where a middleware may have put it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from noria.data.chat_tokenizer import ChatTokenizer
from noria.inference import openai_schema as schema
from noria.inference.engine import Engine
from noria.inference.json_body import read_json
from noria.inference.metrics import CONTENT_TYPE, ServerMetrics
from noria.inference.openai_plans import Plan, plan_chat, plan_completion
from noria.inference.openai_replies import Reply, as_api_error
from noria.inference.openai_schema import ApiError
from noria.inference.serving import EngineDriver, LiveRequest, ServedChoice, ServedRequest, ServerStopping
from noria.inference.structured import Structures

LOG = logging.getLogger("noria.serving")
LONGEST_RETRY_SECONDS = 60


@dataclass(frozen=True)
class ServerLimits:
    """What one server takes on. `live_choices` counts replies being sampled or queued; beyond it clients get a 429."""

    live_choices: int = 256
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
        self.stopping = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self.metrics = ServerMetrics(
            {
                "noria_choices_running": ("Choices being decoded.", lambda: self.engine.load[0]),
                "noria_choices_waiting": ("Choices that wait for a row of the engine.", lambda: self.engine.load[1]),
                "noria_choices_live": ("Choices taken on and not yet answered.", lambda: self.driver.live),
                "noria_choices_limit": ("Choices beyond which requests get a 429.", lambda: self.driver.capacity),
                "noria_cache_used_ratio": ("Share of the cache's blocks in use.", lambda: self.engine.cache_used),
                "noria_preemptions_total": ("Sequences that gave their place up.", lambda: self.engine.preemptions),
                "noria_engine_failures_total": ("Engine steps that failed.", lambda: self.driver.failures),
                "noria_healthy": ("1 while /health says ok.", lambda: float(self._trouble() is None)),
            }
        )

    @functools.cached_property
    def structures(self) -> Structures:
        """Compiles what replies are to match; made when the first request asks for it."""
        return Structures(self.tokenizer.token_bytes, self.tokenizer.ends, self.tokenizer.special_ids)

    def app(self, routes: Sequence[BaseRoute] = (), middleware: Sequence[Any] = ()) -> Starlette:
        """The application; `routes` come after the API's own."""
        own = [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/feedback", self.feedback, methods=["POST"]),
            Route("/health", self.health),
            Route("/ready", self.ready),
            Route("/metrics", self.show_metrics),
        ]
        handlers: dict[Any, Any] = {
            ApiError: _api_error,
            HTTPException: _http_error,
            ClientDisconnect: _client_left,
            Exception: _server_error,
        }
        return Starlette(
            routes=[*own, *routes], middleware=list(middleware), exception_handlers=handlers, lifespan=self._lifespan
        )

    def drain(self, seconds: float) -> None:
        """Takes no more requests, and cuts off after `seconds` those that still run. Event loop only."""
        self.stopping = True
        asyncio.get_running_loop().call_later(seconds, self.driver.fail_all, ServerStopping())

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        self.stopping = True
        await asyncio.to_thread(self.driver.close)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)

    # -- routes --

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, "chat", plan_chat)

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, "completions", plan_completion)

    async def models(self, request: Request) -> Response:
        return JSONResponse(schema.model_list(self.name, self.created, self.engine.context))

    async def model(self, request: Request) -> Response:
        self.check_model(request.path_params["name"])
        return JSONResponse(schema.model_entry(self.name, self.created, self.engine.context))

    async def health(self, request: Request) -> Response:
        """200 while the engine works: what a supervisor restarts by."""
        running, waiting = self.engine.load
        trouble = self._trouble()
        body = {"status": "failing" if trouble else "ok", "model": self.name, "running": running, "waiting": waiting}
        return JSONResponse({**body, **({"error": trouble} if trouble else {})}, 503 if trouble else 200)

    async def ready(self, request: Request) -> Response:
        """200 while a new request would be taken on: what a load balancer routes by."""
        full = self.driver.live >= self.driver.capacity
        reason = self._trouble() or ("stopping" if self.stopping else "full" if full else "")
        return JSONResponse({"ready": not reason, **({"reason": reason} if reason else {})}, 503 if reason else 200)

    async def show_metrics(self, request: Request) -> Response:
        return PlainTextResponse(self.metrics.text(), media_type=CONTENT_TYPE)

    async def feedback(self, request: Request) -> Response:
        body = await read_json(request, self.limits.body_bytes)
        if not isinstance(body, dict) or set(body) - {"id", "signal", "choice"}:
            raise ApiError(400, "feedback takes an object with id, signal and choice.")
        request_id, name, choice = body.get("id"), body.get("signal"), body.get("choice", 0)
        if not isinstance(request_id, str):
            raise schema.invalid("'id' must be the id of a chat completion.", "id", "invalid_type")
        if not isinstance(name, str) or name not in self.signals:
            raise schema.invalid(f"'signal' is {schema.shown(name)}; allowed: {', '.join(self.signals)}.", "signal")
        if isinstance(choice, bool) or not isinstance(choice, int) or not 0 <= choice < schema.MAX_CHOICES:
            message = f"'choice' must be an integer from 0 to {schema.MAX_CHOICES - 1}."
            raise schema.invalid(message, "choice", "invalid_type")
        if not await asyncio.to_thread(self.signal, request_id, name, choice):
            raise ApiError(404, f"No reply {request_id[:80]!r} (choice {choice}) is known.", "id", "not_found")
        return JSONResponse({"ok": True})

    # -- parts --

    def check_model(self, name: str) -> None:
        if name != self.name:
            message = f"The model {schema.shown(name)} does not exist; this server has {self.name!r}."
            raise ApiError(404, message, "model", "model_not_found")

    async def _answer(
        self, request: Request, endpoint: str, plan: Callable[[ChatServer, Any], Awaitable[Plan]]
    ) -> Response:
        arrived = time.monotonic()
        try:
            reply, stream = await self._begin(request, endpoint, plan, arrived)
        except ApiError as error:
            outcome = {429: "full"}.get(error.status, "failed" if error.status >= 500 else "refused")
            self.metrics.requests.add(1, endpoint, outcome)
            raise
        except ClientDisconnect:
            self.metrics.requests.add(1, endpoint, "disconnected")
            raise
        return reply.streamed() if stream else await reply.whole(request)

    async def _begin(
        self,
        request: Request,
        endpoint: str,
        plan: Callable[[ChatServer, Any], Awaitable[Plan]],
        arrived: float,
    ) -> tuple[Reply, bool]:
        if self.stopping:
            raise as_api_error(ServerStopping())
        if self.driver.dead:
            raise ApiError(503, "The engine has stopped; restart the server.", None, "engine_dead")
        body = await read_json(request, self.limits.body_bytes)
        if self.driver.live >= self.driver.capacity:  # before the work of reading the prompt
            raise self._full()
        made = await plan(self, body)
        count = len(made.wanted)
        if count > self.driver.capacity:
            message = f"{count} choices can never fit: this server makes {self.driver.capacity} at a time."
            raise schema.invalid(message, "n")
        if not self.driver.reserve(count):
            raise self._full()
        reply_id = f"{made.prefix}{secrets.token_hex(16)}"
        sampling = made.sampling
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        live = LiveRequest(self.driver, self.tokenizer, made.wanted, sampling, seed, started=arrived)
        head = {
            "id": reply_id,
            "created": int(time.time()),
            "model": self.name,
            "system_fingerprint": self.fingerprint,
        }
        known = getattr(request.state, "user", "")
        user = "/".join(part for part in (known, made.user) if part)

        async def done(choices: tuple[ServedChoice, ...]) -> None:
            trace = getattr(request.state, "trace", "")
            served = ServedRequest(
                request_id=reply_id,
                user=user,
                consent=made.consent,
                messages=made.messages,
                sampling={**sampling.to_json(), "seed": seed},
                prompt_tokens=made.prompt_tokens,
                choices=choices,
                total_seconds=time.monotonic() - live.started,
                first_token_seconds=live.first_token_seconds,
                trace=trace,
                prompts=tuple(tuple(one.prompt_ids) for one in made.wanted) if trace else (),
                echoes=tuple(made.echo(choice) for choice in choices) if trace and made.echo else (),
            )
            await asyncio.to_thread(self.record, served)

        shape = made.shape(head)
        reply = Reply(
            *(reply_id, endpoint, live, shape, self.metrics, made.prompt_tokens, done, self._tasks, made.include_usage)
        )
        return reply, made.stream

    def _full(self) -> ApiError:
        """A refusal that says when to ask again: after the mean time of a request so far."""
        seen = self.metrics.request_seconds
        seconds = min(LONGEST_RETRY_SECONDS, max(1, math.ceil(seen.total / seen.count if seen.count else 1)))
        message = f"The server is full: {self.driver.live} of {self.driver.capacity} replies are being made. "
        return ApiError(429, f"{message}Try again in {seconds} s.", None, "rate_limit_exceeded", seconds)

    def _trouble(self) -> str | None:
        """What keeps the engine from answering; None if nothing does."""
        if self.driver.failure is not None:
            return f"the last engine step failed: {self.driver.failure!r}"
        return "the engine's thread has ended" if self.driver.dead else None


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, headers=error.headers())


async def _client_left(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(ApiError(error.status_code, message).body(), error.status_code, headers=error.headers)


async def _server_error(request: Request, error: Exception) -> Response:
    LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    told = as_api_error(error)
    return JSONResponse(told.body(), told.status, headers=told.headers())
