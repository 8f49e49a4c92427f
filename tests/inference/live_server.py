"""A server whose engine a test holds in its hand: it steps only while the gate is open, and fails when told to."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import uvicorn

from noria.data.chat_tokenizer import load_chat_tokenizer
from noria.deployment.gateway import DrainingServer
from noria.inference import Engine
from noria.inference.openai_api import ChatServer, ServerLimits
from noria.inference.serving import ServedRequest
from noria.model import load_model

PATIENCE_SECONDS = 30.0


class GatedEngine(Engine):
    """`fault`, once set, is raised by the next step instead of stepping."""

    def __init__(self, *arguments: object, **settings: object) -> None:
        super().__init__(*arguments, **settings)  # type: ignore[arg-type]
        self.gate = threading.Event()
        self.gate.set()
        self.fault: Exception | None = None

    def step(self) -> bool:
        self.gate.wait()
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        return super().step()


class LiveServer:
    """`url` of a real server, its `engine`, and what it `recorded`."""

    def __init__(self, folder: Path, limits: ServerLimits, rows: int, drain_seconds: float) -> None:
        model, tokenizer = load_model(folder), load_chat_tokenizer(folder)
        self.engine = GatedEngine(model, tokenizer.end, rows)
        self.recorded: list[ServedRequest] = []
        self.chat = ChatServer(
            self.engine, tokenizer, "noria", "fp_test", self.recorded.append, lambda *_: False, limits=limits
        )
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(64)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        config = uvicorn.Config(self.chat.app(), log_level="error", lifespan="on", timeout_graceful_shutdown=30)
        self.server = DrainingServer(config, self.chat, drain_seconds)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]}, daemon=True)

    def ask(self, client: httpx.Client, path: str = "/v1/chat/completions", **fields: object) -> httpx.Response:
        messages = {"messages": [{"role": "user", "content": "hello you"}]} if "chat" in path else {}
        return client.post(self.url + path, json={"model": "noria", "max_tokens": 8, **messages, **fields})

    def metric(self, line: str) -> float:
        text = httpx.get(self.url + "/metrics").text
        found = [row.rpartition(" ")[2] for row in text.splitlines() if row.rpartition(" ")[0] == line]
        return float(found[0]) if found else 0.0


@contextlib.contextmanager
def live_server(
    folder: Path, limits: ServerLimits | None = None, rows: int = 4, drain_seconds: float = 10.0
) -> Iterator[LiveServer]:
    live = LiveServer(folder, limits or ServerLimits(), rows, drain_seconds)
    live.thread.start()
    wait_until(lambda: live.server.started)
    try:
        yield live
    finally:
        live.engine.gate.set()
        live.server.should_exit = True
        live.thread.join(PATIENCE_SECONDS)
        live.listener.close()
        assert not live.thread.is_alive()


def wait_until(true: object) -> None:
    """Until `true()`; a failure, not a hang, if that never comes."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)
