"""One trace as a single HTML file that needs no server, no network and no other file."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from noria.harness.traces import Entry
from noria.studio.traces.server import finite
from noria.studio.traces.shown import Pieces, trace_json

FOLDER = Path(__file__).parent


def standalone(entry: Entry, row: Mapping[str, Any], pieces: Pieces | None = None) -> str:
    """The page. Only its own script may run in it: text of a trace that slipped through escaping still would not."""
    script, style = (_bundled(name) for name in ("traces.js", "traces.css"))
    # No text in it can end the script element: < is escaped, which JSON reads as before.
    data = json.dumps(finite(trace_json(entry, row, pieces))).replace("<", "\\u003c").replace("&", "\\u0026")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; script-src 'sha256-{allowed}'; style-src 'unsafe-inline'; img-src data:"
    title = escape(f"Trace {entry.trace.id[:12]}".encode("utf-8", "replace").decode())
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{title}</title>\n<link rel="icon" href="data:,">\n<style>{style}</style>\n</head>\n<body>\n'
        '<main id="main"></main>\n'
        f'<script type="application/json" id="data">{data}</script>\n<script>{script}</script>\n</body>\n</html>\n'
    )


def _bundled(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
