"""Reading a request's body as JSON: bounded in bytes, time and nesting; whatever is wrong is a 4xx that says so."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.requests import Request

from noria.inference.openai_schema import ApiError, invalid

DEEPEST = 64  # nested arrays and objects; schemas of tools nest, nothing sensible nests further
BODY_SECONDS = 30.0  # to send a whole body
PASSED_OVER = 16  # times the limit that is read to no purpose, so that the client gets to read the refusal


async def read_json(request: Request, most_bytes: int) -> Any:
    """The decoded body. Raises ApiError (400, 408, 413, 415)."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        message = f"Content-Type must be application/json, not {kind[:80] or 'empty'}."
        raise ApiError(415, message, None, "invalid_content_type")
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise ApiError(415, f"Content-Encoding {coding[:80]} is not taken.", None, "invalid_content_encoding")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return parse_json(await _read(request, most_bytes))
    except TimeoutError as error:
        message = f"The body did not arrive within {BODY_SECONDS:.0f} seconds."
        raise ApiError(408, message, None, "request_timeout") from error


async def _read(request: Request, most_bytes: int) -> bytes:
    raw, size = bytearray(), 0
    async for part in request.stream():
        size += len(part)
        if size <= most_bytes:
            raw += part
        elif size > PASSED_OVER * most_bytes:
            break
    if size > most_bytes:
        raise ApiError(413, f"The body exceeds {most_bytes} bytes.", None, "request_too_large")
    return bytes(raw)


def parse_json(raw: bytes) -> Any:
    """Strict JSON in UTF-8. A lone surrogate (legal in JSON, text in no encoding) becomes "?". Raises ApiError(400)."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid(f"The body is not UTF-8: {error.reason} at byte {error.start}.", None, "invalid_json") from error
    try:
        body = json.loads(text, parse_constant=_refuse_constant)
        if _depth(body) > DEEPEST:
            raise invalid(f"The body nests deeper than {DEEPEST} levels.", None, "invalid_json")
        if "\\u" in text:
            body = json.loads(json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"))
    except RecursionError as error:
        raise invalid(f"The body nests deeper than {DEEPEST} levels.", None, "invalid_json") from error
    except ValueError as error:
        raise invalid(f"The body is not valid JSON: {error}", None, "invalid_json") from error
    return body


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _depth(value: Any) -> int:
    """Levels of nested arrays and objects; found without recursion, and no further than it matters."""
    level, depth = [value], 0
    while level and depth <= DEEPEST:
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        depth += bool(level)
    return depth
