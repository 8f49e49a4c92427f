"""The chat page: plain HTML, CSS and JavaScript, served by the gateway from this folder; works offline."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
