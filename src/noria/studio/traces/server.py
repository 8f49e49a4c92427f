"""Serves the trace pages on this machine: pages of a list by query, single traces, the prompt of a call."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from noria.deployment.origin_guard import OriginGuard
from noria.harness.traces import Library, Query, TraceFileError
from noria.studio.traces.shown import Pieces, prompt_json, trace_json

FOLDER = Path(__file__).parent
FILES = {"traces.css": "text/css", "traces.js": "text/javascript", "list.js": "text/javascript"}
PAGE, MOST = 50, 500  # traces a page of the list; at most
LOOK_AGAIN_SECONDS = 2.0  # a run that is still writing is followed, but not asked at every request


class BadQuery(ValueError):
    """A parameter of a request that can't be read; the message is for whoever asked."""


def trace_app(library: Library, title: str, pieces: Pieces | None = None) -> Starlette:
    """The pages over `library`; `title` says what is browsed."""
    looked = time.monotonic()

    def refresh() -> None:
        nonlocal looked
        if time.monotonic() - looked > LOOK_AGAIN_SECONDS:
            library.refresh()
            looked = time.monotonic()

    def traces(request: Request) -> Response:
        query, page, size = _asked(request.query_params)
        refresh()
        total = library.count(query)
        return _json({"total": total, "page": page, "size": size, "rows": library.rows(query, size, page * size)})

    def about(request: Request) -> Response:
        refresh()
        damages = [str(damage) for damage in library.damages()]
        return _json({"title": title, "facets": library.facets(), "damages": damages[:100], "damaged": len(damages)})

    def trace(request: Request) -> Response:
        number = request.path_params["number"]
        return _json(trace_json(library.entry(number), library.row(number), pieces))

    def prompt(request: Request) -> Response:
        entry = library.entry(request.path_params["number"])
        try:
            return _json(prompt_json(entry, request.path_params["node"], pieces))
        except LookupError as error:
            raise TraceFileError(str(error)) from error

    def page(request: Request) -> Response:
        return FileResponse(FOLDER / "traces.html", media_type="text/html")

    def file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in FILES:
            raise TraceFileError(f"there is no {name}")
        return FileResponse(FOLDER / name, media_type=FILES[name])

    routes = [
        Route("/", page),
        Route("/trace/{number:int}", page),
        Route("/page/{name}", file),
        Route("/api/about", about),
        Route("/api/traces", traces),
        Route("/api/trace/{number:int}", trace),
        Route("/api/trace/{number:int}/prompt/{node:int}", prompt),
    ]
    handlers: Mapping[Any, Callable[..., Response]] = {
        BadQuery: lambda request, error: _json({"error": str(error)}, 400),
        TraceFileError: lambda request, error: _json({"error": str(error)}, 404),
    }
    return Starlette(routes=routes, middleware=[Middleware(OriginGuard)], exception_handlers=handlers)


def serve(library: Library, title: str, port: int, pieces: Pieces | None, on_ready: Callable[[str], None]) -> None:
    """Serve on 127.0.0.1 until Ctrl-C. Raises OSError where the port is taken."""
    import socket

    import uvicorn

    listening = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(trace_app(library, title, pieces), log_level="warning", lifespan="off")
    on_ready(f"http://127.0.0.1:{listening.getsockname()[1]}/")
    with listening:
        uvicorn.Server(config).run(sockets=[listening])


def _asked(given: Mapping[str, str]) -> tuple[Query, int, int]:
    """(query, page from 0, traces a page) of a request's parameters; empty ones ask nothing. Raises BadQuery."""
    known = {field.name: field.type for field in fields(Query)}
    values: dict[str, Any] = {}
    for name, text in given.items():
        if name in ("page", "size") or text == "":
            continue
        if name not in known:
            raise BadQuery(f"no filter {name!r}; there are {', '.join(known)}")
        values[name] = _value(name, text, str(known[name]))
    try:
        page, size = _count(given, "page", 0), _count(given, "size", PAGE)
        return Query(**values), min(page, 10**9), min(max(1, size), MOST)
    except ValueError as error:
        raise BadQuery(str(error)) from error


def _value(name: str, text: str, kind: str) -> Any:
    try:
        if kind.startswith("float"):
            number = float(text)
            if not math.isfinite(number):
                raise ValueError
            return number
        if kind.startswith("int"):
            return max(-(2**62), min(2**62, int(text)))
    except ValueError as error:
        raise BadQuery(f"{name}={text!r} is no number") from error
    return text == "true" if kind == "bool" else text


def _count(given: Mapping[str, str], name: str, default: int) -> int:
    value = int(given.get(name) or default)
    if value < 0:
        raise ValueError(f"{name} must not be negative")
    return value


def _json(value: Any, status: int = 200) -> Response:
    """ASCII with escapes: undecodable bytes of a tool are lone surrogates, which UTF-8 can't carry."""
    return Response(json.dumps(finite(value)), status, media_type="application/json")


def finite(value: Any) -> Any:
    """Infinities as text, which JSON has no number for."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): finite(entry) for name, entry in value.items()}
    return [finite(entry) for entry in value] if isinstance(value, list | tuple) else value
