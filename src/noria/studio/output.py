"""Where commands write: a console for people, one JSON value for scripts."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

PIPED_COLUMNS = 160


def console() -> Console:
    """Standard output, with colour where it is a terminal. Rich is loaded here: `--json` does without."""
    from rich.console import Console

    # Rich takes 80 columns where it can't ask; a file or pipe has no edge to keep to. COLUMNS, if set, is kept to.
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, width=None if known else PIPED_COLUMNS)


def notices() -> Console:
    """Standard error, for what is not the result: progress, and what is being waited for."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@contextmanager
def progress(unit: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error with rate and time left, moved by `report(done, total)`; only a terminal shows it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = notices()
    with Progress(*columns, console=shown, transient=True, disable=not shown.is_terminal) as bar:
        task = bar.add_task(unit, total=total)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def print_json(value: Any) -> int:
    """Print and return the exit code of success; frozen values become objects, what JSON has no word for its name."""
    print(json.dumps(value, default=_plain, ensure_ascii=False, indent=1))
    return 0


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)
