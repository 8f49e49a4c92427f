"""API keys: who may use a server, and under which name their traffic is logged.

A key file has a line a key: `NAME KEY`, or `NAME sha256:DIGEST` so that the file need not hold the key itself. Only
digests stay in memory. SHA-256 without salt suffices because keys are long random strings (`noria serve` refuses short
ones), not passwords.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from noria.inference.openai_schema import ApiError

SHORTEST_KEY = 16
HASHED = "sha256:"
ENVIRONMENT = "NORIA_API_KEYS"
GUARDED = "/v1/"  # health, metrics and the chat page's own files need no key


class KeyFileError(ValueError):
    """A key file that can't be used; the message names the line."""


def given_keys(path: Path | None) -> dict[str, str]:
    """User name by key digest, of the file and of the environment's NORIA_API_KEYS; empty where neither is given.

    Raises KeyFileError."""
    users = read_keys(path) if path else {}
    if ENVIRONMENT in os.environ:
        users = parse_keys(os.environ[ENVIRONMENT].splitlines(), ENVIRONMENT) | users
    return users


def read_keys(path: Path) -> dict[str, str]:
    """User name by key digest. Raises KeyFileError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(f"{path}: can't be read as a key file: {error}") from error
    return parse_keys(text.splitlines(), str(path))


def parse_keys(lines: Iterable[str], source: str) -> dict[str, str]:
    """User name by key digest. Empty lines and those that begin with # are passed over. Raises KeyFileError."""
    users: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        parts = line.split()
        if not parts or parts[0].startswith("#"):
            continue
        if len(parts) != 2:
            raise KeyFileError(f"{source}, line {number}: expected NAME KEY, or NAME {HASHED}DIGEST")
        name, key = parts
        if not re.fullmatch(r"[A-Za-z0-9_.@-]{1,64}", name):
            raise KeyFileError(f"{source}, line {number}: a name has 1 to 64 letters, digits, '_', '.', '@' or '-'")
        hashed = key.startswith(HASHED)
        if hashed and not re.fullmatch(r"[0-9a-f]{64}", key.removeprefix(HASHED)):
            raise KeyFileError(f"{source}, line {number}: {HASHED} takes 64 hexadecimal digits")
        if not hashed and len(key) < SHORTEST_KEY:
            raise KeyFileError(f"{source}, line {number}: a key needs at least {SHORTEST_KEY} characters")
        digest = key.removeprefix(HASHED) if hashed else key_digest(key)
        if users.setdefault(digest, name) != name:
            raise KeyFileError(f"{source}, line {number}: {name} has the key of {users[digest]}")
    if not users:
        raise KeyFileError(f"{source}: no key in it; nobody could use the server")
    return users


def key_digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def user_of(key: str, users: Mapping[str, str]) -> str | None:
    """Whose key this is; None if no one's. Takes as long whichever key matches."""
    given, found = key_digest(key), None
    for digest, user in users.items():
        if hmac.compare_digest(digest, given):
            found = user
    return found


class KeyGuard:
    """ASGI middleware: answers 401 under /v1/ without a known `Authorization: Bearer KEY`; tells the app the user."""

    def __init__(self, app: ASGIApp, users: Mapping[str, str]) -> None:
        self.app, self.users = app, dict(users)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(GUARDED):
            scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
            user = user_of(key.strip(), self.users) if scheme.lower() == "bearer" else None
            if user is None:
                told = "No API key was given" if not key else "The API key is not known"
                error = ApiError(401, f"{told}; send Authorization: Bearer KEY.", None, "invalid_api_key")
                response = JSONResponse(error.body(), 401, headers={"WWW-Authenticate": "Bearer"})
                await response(scope, receive, send)
                return
            scope.setdefault("state", {})["user"] = user
        await self.app(scope, receive, send)
