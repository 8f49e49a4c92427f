"""A foreign agent, run unmodified against our endpoint, recorded into traces: exact ids and log-probabilities.

The agent is given a base URL that names its trace, `http://HOST:PORT/traces/NAME/v1` (or sends the header
`X-Noria-Trace: NAME`), and any key. Every chat completion that it asks for lands in the trace NAME: what the model
really saw and sampled, whatever the agent did with its messages in between. A name is `TASK` or `TASK@ATTEMPT`, where
TASK is the id of the task that it works on. Requests without a name are served and not recorded.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from noria.data.chat_tokenizer import ChatTokenizer
from noria.harness.message_graph import RecordedCall, RecordedReply, conversation_trace
from noria.inference import Engine
from noria.inference.openai_schema import ApiError
from noria.inference.serving import ServedRequest
from noria.types import Message, Trace

HEADER = "x-noria-trace"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,127}")
PREFIX = re.compile(r"/traces/([^/]*)(/.*)")


class RecordingError(ValueError):
    """A recording can't be read; the message names file and line."""


class TraceNames:
    """ASGI middleware: takes the trace's name out of path or header and tells the app. It goes before all others, so
    that they judge the path that is served."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            name = Headers(scope=scope).get(HEADER, "")
            found = PREFIX.fullmatch(scope["path"])
            if found:
                name, path = found[1], found[2]
                scope = {**scope, "path": path, "raw_path": path.encode()}
            if name or found:
                if not NAME.fullmatch(name):
                    message = "A trace's name has 1 to 128 letters, digits, '_', '.', '@' or '-'."
                    await JSONResponse(ApiError(400, message).body(), 400)(scope, receive, send)
                    return
                scope.setdefault("state", {})["trace"] = name
        await self.app(scope, receive, send)


class Recorder:
    """Writes what named traces asked to `folder`, a file each, a line a call; a sent reply is on disk already."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def record(self, served: ServedRequest) -> None:
        """Does nothing where the request has no name or no messages (the completions endpoint)."""
        if not served.trace or not served.messages:
            return
        replies = [
            RecordedReply(prompt, choice.token_ids, choice.logprobs, choice.finish, choice.text, echo)
            for prompt, choice, echo in zip(served.prompts, served.choices, served.echoes, strict=True)
        ]
        line = json.dumps(asdict(RecordedCall(served.messages, tuple(replies), served.sampling)), ensure_ascii=False)
        with self._lock, (self.folder / f"{served.trace}.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def traces(self) -> list[Trace]:
        """What has been recorded so far."""
        with self._lock:
            return recorded_traces(self.folder)


def recorded_traces(folder: Path) -> list[Trace]:
    """The traces that a Recorder wrote to `folder`, by name. Raises RecordingError."""
    if not folder.is_dir():
        raise RecordingError(f"{folder} is no folder of recordings; `noria serve --record {folder}` makes one")
    return [
        conversation_trace(path.stem, path.stem.partition("@")[0], _calls(path))
        for path in sorted(folder.glob("*.jsonl"))
    ]


@dataclass(frozen=True)
class RecordingServer:
    """A server that is up: `base_url(name)` for an agent, `traces()` for us."""

    address: str
    recorder: Recorder

    def base_url(self, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(f"a trace's name has 1 to 128 letters, digits, '_', '.', '@' or '-', not {name!r}")
        return f"{self.address}/traces/{name}/v1"

    def traces(self) -> list[Trace]:
        return self.recorder.traces()


@contextlib.contextmanager
def recording(
    engine: Engine, tokenizer: ChatTokenizer, folder: Path, model: str = "noria"
) -> Iterator[RecordingServer]:
    """Serves `engine` as the model `model` at a free port of 127.0.0.1, in a thread, and records into `folder`.

    The engine may be given new weights in between, as an engine in training is, while no request runs.
    """
    import uvicorn

    from noria.inference.openai_api import ChatServer

    recorder = Recorder(folder)
    chat = ChatServer(engine, tokenizer, model, "recorded", recorder.record, lambda *_: False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = chat.app(middleware=[Middleware(TraceNames)])
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="recording", daemon=True)
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.005)
            yield RecordingServer(f"http://127.0.0.1:{listener.getsockname()[1]}", recorder)
        finally:
            server.should_exit = True
            thread.join(30)


def _calls(path: Path) -> list[RecordedCall]:
    calls = []
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            try:
                calls.append(_call(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                raise RecordingError(f"{path}:{number}: no recorded call: {type(error).__name__}: {error}") from error
    return calls


def _call(raw: dict[str, Any]) -> RecordedCall:
    replies = tuple(
        RecordedReply(
            tuple(reply["prompt_ids"]),
            tuple(reply["token_ids"]),
            tuple(reply["logprobs"]),
            reply["finish"],
            reply["text"],
            Message(**reply["echo"]),
        )
        for reply in raw["replies"]
    )
    return RecordedCall(tuple(Message(**message) for message in raw["messages"]), replies, raw["sampling"])
