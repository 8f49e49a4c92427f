"""What both OpenAI endpoints share: errors, checked reading of fields, and the sampling settings, as pure functions.

What this server can't do is refused with a 400 that names the parameter; nothing is accepted and then ignored.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_CHOICES = 16
MAX_STOPS = 4
MAX_TOP_LOGPROBS = 20
SHOWN_CHARACTERS = 80  # of a refused value, in the message

SHAPING_FIELDS = ("min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias")
SAMPLING_FIELDS = frozenset({"n", "temperature", "top_p", "top_k", "max_tokens", "stop", "seed", *SHAPING_FIELDS})


class ApiError(Exception):
    """An error that the client is told about: HTTP status and the fields of OpenAI's error object."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_seconds = retry_after_seconds

    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        return {} if self.retry_after_seconds is None else {"Retry-After": str(self.retry_after_seconds)}


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    return ApiError(400, message, param, code)


@dataclass(frozen=True)
class Sampling:
    """How the choices of a request are sampled.

    `max_tokens` None means: as many as the context leaves. `logprobs` None means that none are wanted, k that those of
    the k likeliest tokens are wanted besides the sampled one's.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The settings as logged."""
        names = ("n", "temperature", "top_p", "max_tokens", "stop", "seed")
        return {name: list(value) if isinstance(value := getattr(self, name), tuple) else value for name in names}


def checked_body(body: Any, known: Collection[str], neutral: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """A decoded JSON body whose every parameter this server knows. Raises ApiError(400) with the one at fault."""
    if not isinstance(body, dict):
        raise invalid(f"The body must be a JSON object, not {kind_of(body)}.", None, "invalid_type")
    for name in sorted(set(body) - set(known) - set(neutral)):
        raise invalid(
            f"Unrecognized request argument supplied: {shown(name)}", name[:SHOWN_CHARACTERS], "unknown_parameter"
        )
    for name, allowed in neutral.items():
        if name in body and body[name] not in allowed:
            message = f"{name}={shown(body[name])} is not supported by this server; leave it out."
            raise invalid(message, name, "unsupported_parameter")
    if not isinstance(body.get("model"), str):
        raise invalid("you must provide a model parameter", "model", "missing_required_parameter")
    return body


def read_sampling(
    body: Mapping[str, Any], max_tokens_name: str, logprobs: int | None, least_tokens: int = 1
) -> Sampling:
    """The sampling settings of either endpoint; the names that it reads are SAMPLING_FIELDS."""
    return Sampling(
        n=read_integer(body, "n", 1, MAX_CHOICES) or 1,
        temperature=read_number(body, "temperature", 0.0, 2.0, 1.0),
        top_p=_top_p(body),
        top_k=_top_k(body),
        max_tokens=read_integer(body, max_tokens_name, least_tokens, 1 << 31),
        stop=_stops(body.get("stop")),
        seed=read_integer(body, "seed", -(1 << 63), (1 << 63) - 1),
        logprobs=logprobs,
        min_p=read_number(body, "min_p", 0.0, 1.0, 0.0),
        presence_penalty=read_number(body, "presence_penalty", -2.0, 2.0, 0.0),
        frequency_penalty=read_number(body, "frequency_penalty", -2.0, 2.0, 0.0),
        repetition_penalty=read_number(body, "repetition_penalty", 0.01, 10.0, 1.0),
        logit_bias=_logit_bias(body.get("logit_bias")),
    )


def _logit_bias(value: Any) -> dict[int, float]:
    """Token id -> what is added to its logit, in [-100, 100]."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid(f"'logit_bias' must be an object, not {kind_of(value)}.", "logit_bias", "invalid_type")
    found = {}
    for name in value:
        if not name.isascii() or not name.isdigit() or len(name) > 9:
            raise invalid(f"'logit_bias' must have token ids as names; got {shown(name)}.", "logit_bias")
        found[int(name)] = read_number(value, name, -100.0, 100.0, 0.0)
    return found


def shown(value: Any) -> str:
    """A refused value as a message may show it: short."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


def kind_of(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def read_boolean(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise invalid(f"'{name}' must be a boolean, not {kind_of(value)}.", name, "invalid_type")
    return bool(value)


def read_integer(body: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid(f"'{name}' must be an integer, not {kind_of(value)} ({shown(value)}).", name, "invalid_type")
    if not low <= value <= high:
        raise invalid(f"'{name}' must be between {low} and {high}; got {shown(value)}.", name)
    return value


def read_number(body: Mapping[str, Any], name: str, low: float, high: float, default: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid(f"'{name}' must be a number, not {kind_of(value)} ({shown(value)}).", name, "invalid_type")
    # Written so that NaN fails too.
    if not low <= value <= high:
        raise invalid(f"'{name}' must be between {low} and {high}; got {shown(value)}.", name)
    return float(value)


def read_stream(body: Mapping[str, Any]) -> tuple[bool, bool]:
    """(streamed, with the usage in a last chunk)."""
    stream, options = read_boolean(body, "stream"), body.get("stream_options")
    if options is None:
        return stream, False
    if not stream:
        raise invalid("'stream_options' is only allowed when 'stream' is true.", "stream_options")
    if not isinstance(options, dict) or set(options) - {"include_usage"}:
        raise invalid("'stream_options' takes only include_usage.", "stream_options")
    return stream, read_boolean(options, "include_usage")


def read_user(body: Mapping[str, Any]) -> str:
    for name in ("safety_identifier", "user"):
        value = body.get(name)
        if value is not None:
            if not isinstance(value, str) or len(value) > 512:
                raise invalid(f"'{name}' must be a string of at most 512 characters.", name, "invalid_type")
            return value
    return ""


def _top_p(body: Mapping[str, Any]) -> float:
    # The public API takes 0 and means the single best token: the smallest positive nucleus.
    return read_number(body, "top_p", 0.0, 1.0, 1.0) or 1e-9


def _top_k(body: Mapping[str, Any]) -> int:
    # -1 and 0 both mean all tokens, as they do for vLLM.
    return max(0, read_integer(body, "top_k", -1, 1 << 31) or 0)


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if stops is None:
        return ()
    fits = isinstance(stops, list) and len(stops) <= MAX_STOPS
    if not fits or not all(isinstance(stop, str) and stop for stop in stops):
        raise invalid(f"'stop' must be a non-empty string or up to {MAX_STOPS} of them.", "stop")
    return tuple(stops)


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def model_list(name: str, created: int, context: int) -> dict[str, Any]:
    return {"object": "list", "data": [model_entry(name, created, context)]}


def model_entry(name: str, created: int, context: int) -> dict[str, Any]:
    # max_model_len is what vLLM calls the context; its clients read it.
    return {"id": name, "object": "model", "created": created, "owned_by": "noria", "max_model_len": context}
