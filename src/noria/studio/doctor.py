"""What this machine can and can't do: each fact with what it means and, where something is missing, what to do."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# What the nano recipe needs (docs: bounds). Below it, the fact says so.
MEMORY_BYTES, DISK_BYTES = 6 * 2**30, 4 * 2**30


@dataclass(frozen=True)
class Fact:
    """`status`: ok, missing (something noria can do without) or bad (a run would fail)."""

    name: str
    status: str
    value: str
    advice: str = ""


def examine(store: Path) -> list[Fact]:
    """All facts, in the order that they are shown. Takes a few seconds: it starts a sandbox and imports torch."""
    checks: tuple[Callable[[], Fact], ...] = (_python, _cores, _memory, lambda: _disk(store), _sandbox, _torch)
    facts = [check() for check in checks]
    return [*facts, *_accelerators(), _compiler(), _browser()]


def _python() -> Fact:
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Fact("python", "ok" if sys.version_info >= (3, 11) else "bad", text)


def _cores() -> Fact:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    advice = "" if usable >= 2 else "the nano recipe is measured on 2 cores; with one it takes about twice as long"
    return Fact("cores", "ok" if usable >= 2 else "missing", f"{usable} usable, load {os.getloadavg()[0]:.1f}", advice)


def _memory() -> Fact:
    total, free = _memory_bytes()
    advice = "" if free >= MEMORY_BYTES else "recipes/nano.toml may need up to 6 GiB: close other programs"
    status = "ok" if free >= MEMORY_BYTES else "missing"
    return Fact("memory", status, f"{free / 2**30:.1f} GiB free of {total / 2**30:.1f}", advice)


def _memory_bytes() -> tuple[int, int]:
    """(total, available), the smaller of the machine's and the container's limit."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        total, free = fields["MemTotal"], fields["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        total = free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no cgroup v2, or "max": no limit
        return total, free
    return min(total, limit), max(0, min(free, limit - used))


def _disk(store: Path) -> Fact:
    place = store
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    writable = os.access(place, os.W_OK)
    text = f"{free / 2**30:.1f} GiB free at {place}"
    if not writable:
        return Fact("disk", "bad", f"{text}, not writable", "choose another folder with --store or $NORIA_STORE")
    advice = "" if free >= DISK_BYTES else "less than recipes/nano.toml may need: `noria gc` shows what can go"
    return Fact("disk", "ok" if free >= DISK_BYTES else "missing", text, advice)


def _sandbox() -> Fact:
    from noria.sandbox import check

    report = check()
    if report.available:
        return Fact("sandbox", "ok", f"{report.version}: {report.detail}")
    return Fact("sandbox", "bad", "code written by a model can't be run here", report.detail)


def _torch() -> Fact:
    import torch

    from noria.stages.precision import precision_for

    bf16 = f"precision auto is {precision_for('auto')} here"
    return Fact("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads; {bf16}")


def _accelerators() -> list[Fact]:
    import torch

    if torch.cuda.is_available():
        return [
            Fact("accelerator", "ok", f"cuda:{index} {torch.cuda.get_device_name(index)}")
            for index in range(torch.cuda.device_count())
        ]
    if torch.backends.mps.is_available():
        return [Fact("accelerator", "ok", "mps")]
    return [Fact("accelerator", "missing", "none", "not needed: the embedded recipes run on CPU")]


def _compiler() -> Fact:
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and (path := shutil.which(name)):
            said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
            return Fact("compiler", "ok", (said.splitlines() or [path])[0])
    return Fact("compiler", "missing", "none", "only torch.compile needs one: install g++ to use it")


def _browser() -> Fact:
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return Fact("browser", "ok", path)
    return Fact("browser", "missing", "no chromium", "only the browser tests need one; `make test` fetches it")
