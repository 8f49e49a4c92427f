"""Keeps other web pages from talking to a local server through the user's browser.

Two attacks. Cross-site requests: a page of another origin posts to 127.0.0.1; browsers then send its `Origin`. DNS
rebinding: a foreign name is pointed at 127.0.0.1, so the page's origin seems to be ours; then `Host` is the foreign
name. Programs send no `Origin` and pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SAFE_METHODS = ("GET", "HEAD")

# Nothing from elsewhere, no inline script: text of a model that slipped through escaping would still not run.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class OriginGuard:
    """ASGI middleware: answers 403 to a foreign Host, and to a write whose Origin is not this server."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = LOOPBACK) -> None:
        self.app, self.hosts = app, frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        reason = refusal(scope["method"], Headers(scope=scope), self.hosts)
        if reason:
            body = {
                "error": {"message": reason, "type": "invalid_request_error", "param": None, "code": "forbidden_origin"}
            }
            await JSONResponse(body, 403)(scope, receive, send)
            return

        async def send_guarded(message: dict) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"content-security-policy", PAGE_POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self.app(scope, receive, send_guarded)  # type: ignore[arg-type]


def refusal(method: str, headers: Headers, hosts: frozenset[str]) -> str:
    """Why a request is refused; empty if it may pass."""
    named = headers.getlist("host")
    host = named[0] if len(named) == 1 else ""
    if _name(host) not in hosts:
        return f"This server does not answer to the host name {host!r}."
    if method in SAFE_METHODS:
        return ""
    origin = headers.get("origin")
    if origin is not None:
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or parts.netloc.lower() != host.lower():
            return f"Writes are taken from this server's own pages only, not from {origin!r}."
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return "Writes are taken from this server's own pages only."
    return ""


def _name(host: str) -> str:
    """The host without its port; empty if it can't be read."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
