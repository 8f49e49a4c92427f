"""What every benchmark prints: a table for people; with --json one JSON object, and the table on stderr."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One case against one peer (name and version).

    `ratio` is ours over theirs in the same run, above 1 better for us, also for memory, time and error (so there it is
    theirs over ours); `interval` its 95% interval over `n` paired repetitions; `ours` and `theirs` are in `unit`.
    """

    case: str
    peer: str
    ours: float
    theirs: float
    unit: str
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    n: int = 1


def paired_row(
    case: str, peer: str, ours: Sequence[float], theirs: Sequence[float], unit: str, *, lower_is_better: bool
) -> Row:
    """A row from paired repetitions: geometric means, and a t interval on the mean of log ratios."""
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"{case}: {len(ours)} repetitions of ours and {len(theirs)} of theirs can't be paired")
    sign = -1.0 if lower_is_better else 1.0
    logs = [sign * math.log(our / their) for our, their in zip(ours, theirs, strict=True)]
    mean = sum(logs) / len(logs)
    interval = None
    if len(logs) > 1:
        from scipy.stats import t

        spread = math.sqrt(sum((value - mean) ** 2 for value in logs) / (len(logs) - 1) / len(logs))
        half = float(t.ppf(0.975, len(logs) - 1)) * spread
        interval = (math.exp(mean - half), math.exp(mean + half))
    return Row(case, peer, _geometric(ours), _geometric(theirs), unit, math.exp(mean), interval, len(logs))


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "processor": _first_field(Path("/proc/cpuinfo"), "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def show(name: str, rows: Sequence[Row], *, as_json: bool, quick: bool = False, **extra: Any) -> None:
    """Print the table and, if asked, the object {name, machine, quick, rows, **extra}: alone on stdout then."""
    from rich.console import Console
    from rich.table import Table

    measured_on = machine()
    title = f"{name}{' (quick: smaller, less certain)' if quick else ''}"
    table = Table(title=title, caption=", ".join(f"{item}: {value}" for item, value in measured_on.items()))
    for heading in ("case", "peer", "ours", "theirs", "unit", "ratio (95%)", "n"):
        table.add_column(heading, justify="left" if heading in ("case", "peer", "unit") else "right")
    for row in rows:
        table.add_row(row.case, row.peer, f"{row.ours:.4g}", f"{row.theirs:.4g}", row.unit, _ratio(row), str(row.n))
    Console(stderr=as_json).print(table)
    if as_json:
        body = {"name": name, "machine": measured_on, "quick": quick, "rows": [asdict(row) for row in rows], **extra}
        print(json.dumps(body), flush=True)


def _ratio(row: Row) -> str:
    if row.ratio is None:
        return "-"
    return f"{row.ratio:.3g}" + (f" ({row.interval[0]:.3g} to {row.interval[1]:.3g})" if row.interval else "")


def _geometric(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))


def _first_field(path: Path, name: str) -> str:
    if not path.exists():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
