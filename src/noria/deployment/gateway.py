"""The served model: engine, OpenAI-compatible API, chat page and traffic log, put together.

`serve` blocks (the command line); `background` runs the same server in a thread and yields its address (the traffic
step, tests).
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from noria.data.chat_tokenizer import ChatTokenizer, load_chat_tokenizer
from noria.deployment.api_keys import KeyGuard
from noria.deployment.origin_guard import LOOPBACK, OriginGuard
from noria.deployment.traffic import CONSENT_TIERS, SIGNALS, Redactor, Retention, TrafficLog
from noria.harness.recording import Recorder, TraceNames
from noria.inference import Engine
from noria.inference.openai_api import ChatServer, ServerLimits
from noria.inference.serving import ServedRequest
from noria.inference.weights import Precision
from noria.model import load_model
from noria.types import digest

DEFAULT_ROWS = 32  # choices decoded together, as far as the cache holds them
DRAIN_SECONDS = 30.0  # running replies get this long to end when the server is stopped
BACKLOG = 1024  # connections that wait to be accepted
# Longer than clients keep an idle connection (httpx: 5 s): a server that closes first meets a request on its way.
IDLE_SECONDS = 75


class AddressInUse(Exception):
    """Another program listens at the address."""


@dataclass(frozen=True)
class GatewayOptions:
    """How to serve. `hosts` are names the server answers to besides loopback ones; `page` is the chat page's folder;
    `keys` are user names by key digest (empty: no key is needed); `record` a folder for the traces of agents that name
    themselves (`harness/recording.py`), in full and whatever their consent: for one's own agents."""

    traffic_db: Path
    name: str = "noria"
    host: str = "127.0.0.1"
    port: int = 8000
    page: Path | None = None
    hosts: tuple[str, ...] = ()
    source: str = "live"
    rows: int = DEFAULT_ROWS
    precision: Precision = "float32"
    limits: ServerLimits = field(default_factory=ServerLimits)
    retention: Retention = field(default_factory=Retention)
    keys: Mapping[str, str] = field(default_factory=dict)
    drain_seconds: float = DRAIN_SECONDS
    record: Path | None = None


def default_redactor() -> Redactor:
    """The redaction of stage 2: what may not enter a corpus may not enter the log either."""
    from noria.data.pii import redact

    return redact


def policy_digest(model_folder: Path) -> str:
    """The identity of what answers: weights, shape and tokenizer; for an imported model its chat template too."""
    own = ("config.json", "model.safetensors", "tokenizer.json")
    imported = ("tokenizer_config.json", "chat_template.jinja")
    return digest(
        *((model_folder / name).read_bytes() for name in own),
        *(path.read_bytes() for name in imported if (path := model_folder / name).is_file()),
    )


def build_server(engine: Engine, tokenizer: ChatTokenizer, log: TrafficLog, options: GatewayOptions) -> ChatServer:
    """The API over an engine, with what it answers recorded in `log`, and named traces in `options.record`."""
    recorder = Recorder(options.record) if options.record else None

    def record(served: ServedRequest) -> None:
        log.record(served)
        if recorder is not None:
            recorder.record(served)

    return ChatServer(
        engine,
        tokenizer,
        options.name,
        fingerprint=f"fp_{log.policy[:12]}",
        record=record,
        signal=log.signal,
        consents=CONSENT_TIERS,
        signals=SIGNALS,
        limits=options.limits,
    )


def build_app(server: ChatServer, options: GatewayOptions) -> Starlette:
    """The application, ready for any ASGI server."""
    hosts = (*LOOPBACK, options.host, *options.hosts)
    guards = [Middleware(OriginGuard, hosts=hosts)]
    if options.record:
        guards.insert(0, Middleware(TraceNames))
    if options.keys:
        guards.append(Middleware(KeyGuard, users=options.keys))
    return server.app(_page_routes(options), guards)


class DrainingServer(uvicorn.Server):
    """Lets running replies end when it is told to stop; what still runs after `drain_seconds` is told so."""

    def __init__(self, config: uvicorn.Config, chat: ChatServer, drain_seconds: float) -> None:
        super().__init__(config)
        self._chat, self._drain_seconds = chat, drain_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._chat.drain(self._drain_seconds)
        await super().shutdown(sockets)


def _page_routes(options: GatewayOptions) -> list[BaseRoute]:
    if options.page is None:
        return []
    folder = options.page

    async def index(request: object) -> Response:
        return FileResponse(folder / "index.html", headers={"Cache-Control": "no-cache"})

    return [Route("/", index), Mount("/chat", StaticFiles(directory=folder))]


@contextlib.contextmanager
def _serving(
    model_folder: Path, options: GatewayOptions, redact: Redactor | None
) -> Iterator[tuple[uvicorn.Server, socket.socket]]:
    """Everything open: the socket first, so that a taken port fails before the model is loaded."""
    listener = _listen(options.host, options.port)
    with contextlib.ExitStack() as stack:
        stack.callback(listener.close)
        model = load_model(model_folder)
        tokenizer = load_chat_tokenizer(model_folder)
        log = TrafficLog(
            options.traffic_db,
            policy_digest(model_folder),
            redact or default_redactor(),
            options.source,
            options.retention,
        )
        stack.callback(log.close)
        engine = Engine(model, tokenizer.end, options.rows, precision=options.precision, consume_model=True)
        chat = build_server(engine, tokenizer, log, options)
        config = uvicorn.Config(
            build_app(chat, options),
            log_level="warning",
            access_log=False,
            lifespan="on",
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=math.ceil(options.drain_seconds) + 5,
        )
        yield DrainingServer(config, chat, options.drain_seconds), listener


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        port_is_wrong = error.errno in (errno.EADDRINUSE, errno.EACCES)
        advice = "choose another --port" if port_is_wrong else "give --host an address of this machine"
        raise AddressInUse(f"cannot listen at {host}:{port}: {error.strerror or error}; {advice}") from error
    listener.listen(BACKLOG)
    return listener


def address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    model_folder: Path,
    options: GatewayOptions,
    redact: Redactor | None = None,
    on_ready: Callable[[str], None] = print,
) -> None:
    """Serves until Ctrl-C or SIGTERM, then lets running replies end. `on_ready` gets the address.

    Raises AddressInUse, ModelFolderError, TrafficError."""
    with _serving(model_folder, options, redact) as (server, listener):
        on_ready(address(options.host, listener.getsockname()[1]))
        server.run(sockets=[listener])


def promised_retention(model_folder: Path) -> Retention:
    """What the system card of this release promises; the default for a bare model."""
    card = model_folder / "release.json"
    promised = json.loads(card.read_text()).get("retention") if card.exists() else None
    return Retention(promised["retention_days"], promised["traffic_bytes"]) if promised else Retention()


@contextlib.contextmanager
def background(model_folder: Path, options: GatewayOptions, redact: Redactor | None = None) -> Iterator[str]:
    """The real server in a thread of this process; yields its address, stops it at the end."""
    with _serving(model_folder, options, redact) as (server, listener):
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="gateway", daemon=True)
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.005)
            yield address(options.host, listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(options.drain_seconds + 15)
