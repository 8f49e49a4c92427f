"""Bounds on all processes of one sandbox together, by control groups, where this machine lets us make them.

A group is made beneath the one that this process is in, so that it can only narrow what already holds. Version 1 (one
tree a controller) and version 2 (Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst of the kernel). In version 2 a
group that holds processes can't also have bounded children, unless it is the root: then there are no groups for us.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

CONTROLLERS = ("pids", "memory")
TRIED = {"pids": 1 << 10, "memory": 1 << 26}
_numbers = itertools.count()


@dataclass(frozen=True)
class Place:
    """Where groups of one controller can be made."""

    folder: Path
    version: int


@lru_cache(maxsize=1)
def places() -> Mapping[str, Place]:
    """The controllers that a group can be made for, each with its place. Tries it once; cached."""
    try:
        groups = Path("/proc/self/cgroup").read_text()
        mounts = Path("/proc/self/mountinfo").read_text()
    except OSError:
        return {}
    found = {name: place for name in CONTROLLERS if (place := locate(name, groups, mounts)) is not None}
    return {name: place for name, place in found.items() if _works(name, place)}


def locate(controller: str, groups: str, mounts: str) -> Place | None:
    """The folder of this process's own group for a controller, from the text of /proc/self/cgroup and mountinfo."""
    own = {}
    for line in groups.splitlines():
        number, names, path = line.split(":", 2)
        own.update(dict.fromkeys(names.split(",") if number != "0" else ["unified"], path))
    for version, key in ((1, controller), (2, "unified")):
        for line in mounts.splitlines() if key in own else ():
            left, _, right = line.partition(" - ")
            root, point = left.split()[3:5]
            kind, _, options = right.split(maxsplit=2)
            is_it = kind == "cgroup" and controller in options.split(",") if version == 1 else kind == "cgroup2"
            inside = os.path.relpath(own[key], root)
            if not is_it or inside.startswith(".."):
                continue
            place = Place(Path(point) / inside, version)
            if version == 1 or controller in _words(place.folder / "cgroup.controllers"):
                return place
    return None


class Group:
    """One sandbox's processes. `remove` kills what is left in it."""

    def __init__(self, memory_bytes: int, processes: int) -> None:
        found = places()
        name = f"noria-{os.getpid()}-{next(_numbers)}"
        self._folders = {place.folder / name for place in found.values()}
        self._memory = found["memory"].folder / name if "memory" in found else None
        self.counts = "pids" in found  # whether the number of processes is bounded
        for folder in self._folders:
            _remove_stale(folder.parent)
            folder.mkdir()
        bounds = {"pids": processes, "memory": memory_bytes}
        for controller, place in found.items():
            _bound(place.folder / name, controller, place.version, bounds[controller])

        _made[self] = os.getpid()

    def add(self, pid: int) -> None:
        """Puts a process, and all that it will start, into the group."""
        for folder in self._folders:
            (folder / "cgroup.procs").write_text(str(pid))

    def memory_kills(self) -> int:
        """How many processes were killed so far because the group's memory was used up."""
        if self._memory is None:
            return 0
        lines = "\n".join(
            (self._memory / name).read_text()
            for name in ("memory.oom_control", "memory.events")
            if (self._memory / name).exists()
        )
        return sum(int(line.split()[1]) for line in lines.splitlines() if line.startswith("oom_kill "))

    def remove(self) -> None:
        _made.pop(self, None)
        for folder in self._folders:
            _kill_and_remove(folder)


_made: dict[Group, int] = {}  # with the process that made it: a fork of that one must leave it alone


@atexit.register
def _remove_forgotten() -> None:
    """Groups of sandboxes that nobody closed."""
    for group, owner in list(_made.items()):
        if owner == os.getpid():
            group.remove()


def _bound(folder: Path, controller: str, version: int, amount: int) -> None:
    if controller == "pids":
        (folder / "pids.max").write_text(str(amount))
        return
    (folder / ("memory.limit_in_bytes" if version == 1 else "memory.max")).write_text(str(amount))
    for name, value in (("memory.memsw.limit_in_bytes", amount), ("memory.swap.max", 0)):
        if (folder / name).exists():
            (folder / name).write_text(str(value))


def _works(controller: str, place: Place) -> bool:
    """Whether a bounded group can really be made there."""
    folder = place.folder / f"noria-{os.getpid()}-{next(_numbers)}"
    try:
        if place.version == 2 and controller not in _words(place.folder / "cgroup.subtree_control"):
            (place.folder / "cgroup.subtree_control").write_text(f"+{controller}")
        folder.mkdir()
    except OSError:
        return False
    try:
        _bound(folder, controller, place.version, TRIED[controller])
        return True
    except OSError:
        return False
    finally:
        folder.rmdir()


def _kill_and_remove(folder: Path) -> None:
    """A group can go once its last process has; a killed one may take a moment."""
    deadline = time.monotonic() + 5.0
    while folder.exists():
        with contextlib.suppress(OSError):
            for pid in map(int, _words(folder / "cgroup.procs")):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            folder.rmdir()
            return
        if time.monotonic() > deadline:
            return  # the next sandbox on this machine tries again
        time.sleep(0.002)


def _remove_stale(parent: Path) -> None:
    """Groups of processes that were killed before they could remove them."""
    for folder in parent.glob("noria-*-*"):
        owner = folder.name.split("-")[1]
        if owner.isdigit() and not Path("/proc", owner).exists():
            with contextlib.suppress(OSError):  # someone else was faster, or a process is left in it
                folder.rmdir()


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
