"""The OpenAI chat-completions wire format, as pure functions: a JSON body to a ChatRequest, tokens to JSON replies.

What this server can't do is refused with a 400 that names the parameter; nothing is accepted and then ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from noria.types import Message

MAX_CHOICES = 16
MAX_STOPS = 4

# Parameters of the public API that are accepted only at the value that changes nothing here.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
    "logit_bias": ({}, None),
    "response_format": ({"type": "text"}, None),
    "tools": ([], None),
    "tool_choice": ("none", None),
    "functions": ([], None),
    "function_call": ("none", None),
    "modalities": (["text"], None),
    "top_logprobs": (0, None),
    "service_tier": ("auto", "default", None),
    "store": (False, None),
    "parallel_tool_calls": (True, False, None),
}
KNOWN = {
    *("model", "messages", "stream", "stream_options", "n", "temperature", "top_p", "max_tokens", "stop", "seed"),
    *("max_completion_tokens", "logprobs", "user", "safety_identifier", "metadata"),
    *NEUTRAL,
}
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


class ApiError(Exception):
    """An error that the client is told about: HTTP status and the fields of OpenAI's error object."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        kind = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}.get(
            self.status, "invalid_request_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class ChatRequest:
    """A valid request. `max_tokens` None means: as many as the context leaves."""

    model: str
    messages: tuple[Message, ...]
    stream: bool = False
    include_usage: bool = False
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: bool = False
    user: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    def sampling(self) -> dict[str, Any]:
        """The sampling settings as logged."""
        names = ("n", "temperature", "top_p", "max_tokens", "stop", "seed")
        return {name: list(value) if isinstance(value := getattr(self, name), tuple) else value for name in names}


def parse_chat_request(body: Any) -> ChatRequest:
    """Checks a decoded JSON body. Raises ApiError(400) with the parameter at fault."""
    if not isinstance(body, dict):
        raise ApiError(400, f"The body must be a JSON object, not {_kind(body)}.")
    for name in sorted(set(body) - KNOWN):
        raise ApiError(400, f"Unrecognized request argument supplied: {name}", name, "unknown_parameter")
    for name, allowed in NEUTRAL.items():
        if name in body and body[name] not in allowed:
            raise ApiError(
                400,
                f"{name}={body[name]!r} is not supported by this server; leave it out.",
                name,
                "unsupported_parameter",
            )
    if not isinstance(body.get("model"), str):
        raise ApiError(400, "you must provide a model parameter", "model", "missing_required_parameter")
    max_tokens_name = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    stream = _boolean(body, "stream")
    return ChatRequest(
        model=body["model"],
        messages=_messages(body.get("messages")),
        stream=stream,
        include_usage=_include_usage(body, stream),
        n=int(_number(body, "n", 1, 1, MAX_CHOICES, whole=True) or 1),
        temperature=_given(_number(body, "temperature", 1.0, 0.0, 2.0), 1.0),
        top_p=_top_p(body),
        max_tokens=_optional_int(_number(body, max_tokens_name, None, 1, 1 << 31, whole=True)),
        stop=_stops(body.get("stop")),
        seed=_optional_int(_number(body, "seed", None, -(1 << 63), (1 << 63) - 1, whole=True)),
        logprobs=_boolean(body, "logprobs"),
        user=_user(body),
        metadata=_metadata(body.get("metadata")),
    )


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


def _optional_int(value: float | None) -> int | None:
    return None if value is None else int(value)


def _boolean(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise ApiError(400, f"'{name}' must be a boolean, not {_kind(value)}.", name, "invalid_type")
    return bool(value)


def _number(
    body: Mapping[str, Any], name: str, default: float | None, low: float, high: float, whole: bool = False
) -> float | None:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        wanted = "an integer" if whole else "a number"
        raise ApiError(400, f"'{name}' must be {wanted}, not {_kind(value)} ({value!r}).", name, "invalid_type")
    # Written so that NaN fails too.
    if not low <= value <= high:
        raise ApiError(400, f"'{name}' must be between {low} and {high}; got {value}.", name, "invalid_value")
    return value


def _top_p(body: Mapping[str, Any]) -> float:
    value = _given(_number(body, "top_p", 1.0, 0.0, 1.0), 1.0)
    # The public API takes 0 and means the single best token: the smallest positive nucleus.
    return value if value > 0 else 1e-9


def _include_usage(body: Mapping[str, Any], stream: bool) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if not stream:
        raise ApiError(
            400, "'stream_options' is only allowed when 'stream' is true.", "stream_options", "invalid_value"
        )
    if not isinstance(options, dict) or set(options) - {"include_usage", "include_obfuscation"}:
        raise ApiError(400, "'stream_options' takes only include_usage.", "stream_options", "invalid_value")
    return _boolean(options, "include_usage")


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if stops is None:
        return ()
    if (
        not isinstance(stops, list)
        or not all(isinstance(stop, str) and stop for stop in stops)
        or len(stops) > MAX_STOPS
    ):
        raise ApiError(400, f"'stop' must be a non-empty string or up to {MAX_STOPS} of them.", "stop", "invalid_value")
    return tuple(stops)


def _user(body: Mapping[str, Any]) -> str:
    for name in ("safety_identifier", "user"):
        value = body.get(name)
        if value is not None:
            if not isinstance(value, str) or len(value) > 512:
                raise ApiError(400, f"'{name}' must be a string of at most 512 characters.", name, "invalid_type")
            return value
    return ""


def _metadata(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(entry, str) for entry in value.values()) or len(value) > 16:
        raise ApiError(400, "'metadata' must be an object of at most 16 strings.", "metadata", "invalid_type")
    return value


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise ApiError(400, "'messages' must be a non-empty array.", "messages", "invalid_value")
    return tuple(_message(message, f"messages[{index}]") for index, message in enumerate(value))


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise ApiError(400, f"'{where}' must be an object, not {_kind(value)}.", where, "invalid_type")
    role = value.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise ApiError(
            400, f"'{where}.role' is {role!r}; allowed: {', '.join(ROLES)}.", f"{where}.role", "invalid_value"
        )
    if value.get("tool_calls"):
        raise ApiError(
            400,
            f"'{where}.tool_calls' is not supported by this server.",
            f"{where}.tool_calls",
            "unsupported_parameter",
        )
    content = value.get("content")
    if isinstance(content, list):
        content = _joined(content, f"{where}.content")
    if not isinstance(content, str):
        raise ApiError(
            400, f"'{where}.content' must be a string, not {_kind(content)}.", f"{where}.content", "invalid_type"
        )
    return Message(ROLES[role], content)  # type: ignore[arg-type]


def _joined(parts: Sequence[Any], where: str) -> str:
    for index, part in enumerate(parts):
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise ApiError(
                400, f"'{where}[{index}]' must be a part of type text.", f"{where}[{index}]", "invalid_value"
            )
    return "".join(part["text"] for part in parts)


# -- replies --


@dataclass(frozen=True)
class TokenLogprob:
    """One sampled token as text, its bytes and its log-probability."""

    token: str
    logprob: float

    def to_json(self) -> dict[str, Any]:
        # Text of half a character can't say its bytes; the API allows null there.
        raw = None if "\ufffd" in self.token else list(self.token.encode("utf-8", "surrogatepass"))
        return {"token": self.token, "logprob": round(self.logprob, 6), "bytes": raw, "top_logprobs": []}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def logprobs_json(tokens: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    return None if tokens is None else {"content": [token.to_json() for token in tokens], "refusal": None}


def completion(
    request_id: str,
    created: int,
    model: str,
    fingerprint: str,
    choices: Sequence[Mapping[str, Any]],
    used: Mapping[str, int],
) -> dict[str, Any]:
    """The body of a reply that is not streamed."""
    head = {"id": request_id, "object": "chat.completion", "created": created, "model": model}
    return {**head, "system_fingerprint": fingerprint, "choices": list(choices), "usage": dict(used)}


def choice(index: int, text: str, finish: str, tokens: Sequence[TokenLogprob] | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"index": index, "message": message, "logprobs": logprobs_json(tokens), "finish_reason": finish}


def chunk(
    head: Mapping[str, Any],
    index: int | None,
    delta: Mapping[str, Any] | None = None,
    finish: str | None = None,
    tokens: Sequence[TokenLogprob] | None = None,
    used: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """One `data:` object of a stream; index None makes the closing chunk that carries only the usage."""
    choices = []
    if index is not None:
        choices = [
            {"index": index, "delta": dict(delta or {}), "logprobs": logprobs_json(tokens), "finish_reason": finish}
        ]
    return {**head, "object": "chat.completion.chunk", "choices": choices, **({"usage": dict(used)} if used else {})}


def model_list(name: str, created: int) -> dict[str, Any]:
    return {"object": "list", "data": [model_entry(name, created)]}


def model_entry(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "noria"}
