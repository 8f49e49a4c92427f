"""Where commands write: a console for people, one JSON value for scripts."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """Standard output, with colour where it is a terminal. Rich is loaded here: `--json` does without."""
    from rich.console import Console

    return Console(highlight=False)


def print_json(value: Any) -> int:
    """Print and return the exit code of success; frozen values become objects, what JSON has no word for its name."""
    print(json.dumps(value, default=_plain, ensure_ascii=False, indent=1))
    return 0


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)
