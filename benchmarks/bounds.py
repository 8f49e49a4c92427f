"""The bounds of the demo: time of every recipe, peak memory, disk of the installation, and what a second run costs.

    python -m benchmarks.bounds [--recipe recipes/nano.toml] [--json] [--quick]

Absolute times are of this machine and this hour; the rows give each figure over its bound (above 1 is within it).
--quick measures recipes/debug.toml and the installation only, and says so.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import Row, show

ROOT = Path(__file__).parent.parent
DEMO_SECONDS, DEBUG_SECONDS, AGAIN_SECONDS = 900.0, 60.0, 2.0
DEMO_BYTES, INSTALL_BYTES = 6e9, 2e9


@dataclass(frozen=True)
class Measured:
    seconds: float
    peak_bytes: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=str(ROOT / "recipes" / "nano.toml"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="only the debug recipe and the installation")
    options = parser.parse_args()
    rows = [_row("installation, dev tools included", installed_bytes(), INSTALL_BYTES, "bytes")]
    with tempfile.TemporaryDirectory(prefix="noria-bounds-") as folder:
        rows += recipe_rows(str(ROOT / "recipes" / "debug.toml"), Path(folder) / "debug", DEBUG_SECONDS)
        if not options.quick:
            rows += recipe_rows(options.recipe, Path(folder) / "demo", DEMO_SECONDS)
    show("bounds", rows, as_json=options.json, quick=options.quick)
    return 0 if all(row.ratio >= 1.0 for row in rows) else 1


def recipe_rows(recipe: str, store: Path, seconds: float) -> list[Row]:
    first, again = run(recipe, store), run(recipe, store)
    name = Path(recipe).stem
    return [
        _row(f"{name}: whole run", first.seconds, seconds, "seconds"),
        _row(f"{name}: peak memory, all processes", first.peak_bytes, DEMO_BYTES, "bytes"),
        _row(f"{name}: second run, nothing to do", again.seconds, AGAIN_SECONDS, "seconds"),
    ]


def run(recipe: str, store: Path) -> Measured:
    """Run a recipe as a user would; the peak is the largest sum over its process tree, sampled twice a second."""
    started, peak = time.monotonic(), 0.0
    process = subprocess.Popen(
        [sys.executable, "-m", "noria", "run", recipe, "--store", str(store)], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    while process.poll() is None:
        peak = max(peak, tree_bytes(process.pid))
        time.sleep(0.5 if time.monotonic() - started > 3 else 0.05)
    if process.returncode:
        raise SystemExit(f"`noria run {recipe}` failed with {process.returncode}: run it alone to see why")
    return Measured(time.monotonic() - started, peak)


def tree_bytes(root: int) -> float:
    """Proportional set size of a process and all its descendants, in bytes; a process that ends meanwhile counts 0."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        text = _read(stat)
        if text:
            parents.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    waiting, total = [root], 0.0
    while waiting:
        pid = waiting.pop()
        waiting += parents.get(pid, [])
        lines = _read(Path(f"/proc/{pid}/smaps_rollup")).splitlines()
        total += sum(1024.0 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def installed_bytes() -> float:
    """Blocks that the virtual environment takes on disk."""
    return float(sum(path.lstat().st_blocks * 512 for path in Path(sys.prefix).rglob("*")))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):  # the process has ended
        return ""


def _row(case: str, ours: float, bound: float, unit: str) -> Row:
    return Row(case=case, peer="bound", ratio=bound / ours, interval=None, n=1, ours=ours, theirs=bound, unit=unit)


if __name__ == "__main__":
    sys.exit(main())
