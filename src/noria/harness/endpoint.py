"""A policy behind any OpenAI-compatible chat endpoint. It tells no token ids: the trace records the endpoint's counts,
and budgets of tokens are kept by them.

Busy or broken servers (429, 5xx, a lost connection, no reply in time) are asked again, a few times, after growing
pauses or as long as `Retry-After` says. What still fails ends its trace with `model_error` and the reason; others go
on.
"""

from __future__ import annotations

import http.client
import json
import queue
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from noria.harness.calls import clean, named_call
from noria.harness.policy import ModelFailed, Prompt, Reply, Said, Turn
from noria.harness.program import Action
from noria.inference.tool_calls import ToolSpec
from noria.types import THINK_CLOSE, THINK_OPEN, EndpointReply, ModelCall, Node, digest, split_thinking

AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}
LONGEST_PAUSE_SECONDS = 60.0
SEED_BITS = 31  # some servers take no more


@dataclass(frozen=True)
class Endpoint:
    """Where the model answers and how patient to be. `base_url` ends before /chat/completions, mostly in /v1."""

    base_url: str
    model: str
    api_key: str = field(default="", repr=False)
    timeout_seconds: float = 600.0
    attempts: int = 4
    first_pause_seconds: float = 0.5
    connections: int = 64
    # OpenAI's newest models want max_completion_tokens; most other servers know only max_tokens.
    limit_field: str = "max_tokens"
    extra: Mapping[str, Any] = field(default_factory=dict)  # sent with every request

    def __post_init__(self) -> None:
        where = urlsplit(self.base_url)
        if where.scheme not in ("http", "https") or not where.hostname:
            raise ValueError(
                f"base_url {self.base_url!r}: expected http(s)://host[:port]/path, e.g. http://localhost:8000/v1"
            )
        if self.attempts < 1 or self.connections < 1:
            raise ValueError("attempts and connections must be at least 1")


class EndpointPolicy:
    """Use as a context manager, or `close` it. A batch of turns is asked over `endpoint.connections` at once."""

    shows_tools = True

    def __init__(self, endpoint: Endpoint, pause: Callable[[float], None] = time.sleep) -> None:
        self.endpoint, self._pause = endpoint, pause
        where = urlsplit(endpoint.base_url)
        self._path = where.path.rstrip("/") + "/chat/completions"
        self._idle: queue.LifoQueue[http.client.HTTPConnection] = queue.LifoQueue()
        self._pool = ThreadPoolExecutor(endpoint.connections, thread_name_prefix="endpoint")

    def __enter__(self) -> EndpointPolicy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._pool.shutdown()
        while not self._idle.empty():
            self._idle.get().close()

    def lay_out(self, view: Sequence[Node], tools: Sequence[ToolSpec], said: Said | None) -> Prompt:
        body: dict[str, Any] = {"messages": wire_messages(view)}
        if tools:
            body["tools"] = [tool.to_json() for tool in tools]
        return Prompt(digest(json.dumps(body, sort_keys=True)), body=body)

    def reply(self, turns: Sequence[Turn]) -> list[Reply | ModelFailed]:
        return list(self._pool.map(self._ask, turns))

    def read(self, call: ModelCall, content: str) -> tuple[Action, ...]:
        return actions_of(call, content)

    def _ask(self, turn: Turn) -> Reply | ModelFailed:
        params, endpoint = turn.params, self.endpoint
        body = {
            "model": endpoint.model,
            **turn.prompt.body,
            endpoint.limit_field: params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "seed": params.seed % 2**SEED_BITS,
            **({"top_k": params.top_k} if params.top_k else {}),
            **endpoint.extra,
        }
        reason, asked_to_wait = "", 0.0
        for attempt in range(endpoint.attempts):
            if attempt:
                wait = max(endpoint.first_pause_seconds * 2 ** (attempt - 1), asked_to_wait)
                self._pause(min(LONGEST_PAUSE_SECONDS, wait))
            try:
                status, headers, raw = self._post(json.dumps(body).encode())
            except (OSError, http.client.HTTPException) as error:
                reason, asked_to_wait = f"{type(error).__name__}: {error}", 0.0
                continue
            if status == 200:
                return read_reply(raw, endpoint.model)
            reason = f"status {status}: {raw[:300].decode('utf-8', 'replace')}"
            if status not in AGAIN:
                break
            asked_to_wait = _seconds(headers.get("Retry-After"))
        return ModelFailed(f"{endpoint.base_url}: {reason}")

    def _post(self, body: bytes) -> tuple[int, http.client.HTTPMessage, bytes]:
        headers = {"Content-Type": "application/json"}
        if self.endpoint.api_key:
            headers["Authorization"] = f"Bearer {self.endpoint.api_key}"
        try:
            connection, fresh = self._idle.get_nowait(), False
        except queue.Empty:
            connection, fresh = self._connect(), True
        try:
            try:
                connection.request("POST", self._path, body, headers)
                response = connection.getresponse()
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                if fresh:
                    raise
                connection.close()  # the server had closed it while it was idle: that is no failure
                connection.request("POST", self._path, body, headers)
                response = connection.getresponse()
            raw = response.read()
        except BaseException:
            connection.close()
            raise
        self._idle.put(connection)
        return response.status, response.headers, raw

    def _connect(self) -> http.client.HTTPConnection:
        where = urlsplit(self.endpoint.base_url)
        assert where.hostname
        if where.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(
                where.hostname, where.port, timeout=self.endpoint.timeout_seconds, context=context
            )
        return http.client.HTTPConnection(where.hostname, where.port, timeout=self.endpoint.timeout_seconds)


def wire_messages(view: Sequence[Node]) -> list[dict[str, Any]]:
    """The messages as the interface has them. A call is sent back with its result; one whose result the program does
    not show, and a result whose call it does not show, are sent as plain text, since servers refuse either alone."""
    told: list[dict[str, Any]] = []
    open_calls: list[str] = []
    for place, node in enumerate(view):
        role, content = node.message.role, clean(node.message.content)
        if role == "tool":
            if open_calls:
                told.append({"role": "tool", "tool_call_id": open_calls.pop(0), "content": content})
            else:
                told.append({"role": "user", "content": content})
            continue
        open_calls = []
        message: dict[str, Any] = {"role": role, "content": content}
        calls = node.call.endpoint.calls if node.call and node.call.endpoint else ()
        if calls:
            results = _results_behind(view, place)
            open_calls = [f"call_{place}_{number}" for number in range(min(results, len(calls)))]
            message = _with_calls(split_thinking(_spoken(node))[1], calls, open_calls)
        elif role == "assistant":
            message["content"] = split_thinking(content)[1] or content
        told.append(message)
    return told


def read_reply(raw: bytes, model: str) -> Reply | ModelFailed:
    """A reply's calls, else its answer; thinking that comes in a field of its own is put before it in <think> tags."""
    try:
        answer = json.loads(raw)
        choice = answer["choices"][0]
        message = choice["message"]
        text = _text(message.get("content"))
        wanted = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or ()]
        counted = _counts(answer.get("usage") or {})
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        return ModelFailed(
            f"the endpoint's reply has not the form of a chat completion: {type(error).__name__}: {error}"
        )
    thinking = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(thinking, str) and thinking and not text.startswith(THINK_OPEN):
        text = f"{THINK_OPEN}{clean(thinking)}{THINK_CLOSE}{text}"
    calls = tuple((clean(str(name)), clean(_arguments_text(arguments))) for name, arguments in wanted)
    finish = "length" if choice.get("finish_reason") == "length" else "stop"
    call = ModelCall((), (), (), finish=finish, endpoint=EndpointReply(model, *counted, calls))
    content = text + "".join(f"\n{as_text(*wish)}" for wish in calls)
    return Reply(call, actions_of(call, content))


def actions_of(call: ModelCall, content: str) -> tuple[Action, ...]:
    """The calls of a reply, or the one answer that it is."""
    if call.endpoint is None or not call.endpoint.calls:
        return (Action("answer", content),)
    return tuple(named_call(content, name, arguments) for name, arguments in call.endpoint.calls)


def as_text(name: str, arguments: str) -> str:
    """A call as it stands in a message's content, for people and exports."""
    return (
        f'<tool_call>{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {arguments or "{}"}}}</tool_call>'
    )


def _spoken(node: Node) -> str:
    """What the model said besides its calls."""
    assert node.call and node.call.endpoint
    tail = "".join(f"\n{as_text(*wish)}" for wish in node.call.endpoint.calls)
    return clean(node.message.content).removesuffix(tail)


def _results_behind(view: Sequence[Node], place: int) -> int:
    count = 0
    for node in view[place + 1 :]:
        if node.message.role != "tool":
            break
        count += 1
    return count


def _with_calls(text: str, calls: Sequence[tuple[str, str]], ids: Sequence[str]) -> dict[str, Any]:
    rest = "\n".join(as_text(*call) for call in calls[len(ids) :])
    content = "\n".join(part for part in (text, rest) if part)
    if not ids:
        return {"role": "assistant", "content": content}
    wire = [
        {"id": key, "type": "function", "function": {"name": name, "arguments": _object_text(arguments)}}
        for key, (name, arguments) in zip(ids, calls, strict=False)
    ]
    return {"role": "assistant", "content": content or None, "tool_calls": wire}


def _counts(usage: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens of prompt and reply; both 0 where one is missing."""
    prompt, sampled = usage.get("prompt_tokens"), usage.get("completion_tokens")
    counts = int(prompt or 0), int(sampled or 0)
    return (0, 0) if prompt is None or sampled is None else counts


def _text(content: Any) -> str:
    """A message's text; some servers send it in parts."""
    parts = content if isinstance(content, list) else [{"text": content or ""}]
    return clean("".join(part.get("text", "") for part in parts))


def _object_text(arguments: str) -> str:
    """Servers refuse a history with arguments that are no JSON object, also where their own model wrote them."""
    try:
        return arguments if isinstance(json.loads(arguments), dict) else "{}"
    except (ValueError, RecursionError):
        return "{}"


def _arguments_text(arguments: Any) -> str:
    """The protocol has them as JSON text; some servers send the object, or none."""
    if arguments is None:
        return "{}"
    return arguments if isinstance(arguments, str) else json.dumps(arguments)


def _seconds(header: str | None) -> float:
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0
