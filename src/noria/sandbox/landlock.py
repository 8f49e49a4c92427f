"""The weaker sandbox, for machines without user namespaces: Landlock, seccomp filters and limits. Only when asked for.

Landlock (landlock(7); the kernel's Documentation/userspace-api/landlock.rst) refuses to open, make, rename or remove
files but those allowed, and with newer kernels to signal processes outside. It has no namespaces, so a candidate sees
that files and processes of the host exist (not what is in them) and the host's clock, name and identity; the disk space
that it fills is bounded only by time; and without control groups a command can't fork. docs/sandbox.md lists it all.
"""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from noria.sandbox.bubblewrap import FIXED
from noria.sandbox.seccomp import outer_filter

LANDLOCK_CREATE_RULESET, ONLY_ASK_VERSION = 444, 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, MAKE_CHAR, MAKE_SOCK, MAKE_BLOCK = (
    1 << bit for bit in (0, 1, 2, 3, 6, 9, 11)
)
READ = EXECUTE | READ_FILE | READ_DIR
# Rights that each version of the interface added: reparenting (2), truncating (3), controlling devices (5).
FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
NETWORK_RIGHTS, NETWORK_SINCE = 0b11, 4  # bind and connect TCP; the filter refuses all sockets anyway
SCOPES, SCOPES_SINCE = 0b11, 6  # abstract Unix sockets and signals stay inside


@lru_cache(maxsize=1)
def version() -> int:
    """The kernel's version of the Landlock interface; 0 where there is none."""
    if not sys.platform.startswith("linux"):
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    return max(0, int(libc.syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ONLY_ASK_VERSION)))


def why_not() -> str:
    """Why this sandbox can't be had here; empty where it can."""
    if not outer_filter(platform.machine()):
        return f"there is no seccomp filter for {platform.machine()}"
    if version() < 3:
        return f"the kernel's Landlock has version {version()}, and truncating files is refused from version 3 on"
    return ""


def signals_stay_inside() -> bool:
    return version() >= SCOPES_SINCE


@dataclass(frozen=True)
class Confinement:
    """What the server applies in a candidate's process: rights by path, as integers for the kernel."""

    files: int
    network: int
    scopes: int
    size: int  # of struct landlock_ruleset_attr that this kernel knows
    paths: dict[str, int]


def confinement(workspace: str, readable: list[str]) -> Confinement:
    """All rights in the workspace but making devices and sockets; reading and running what is `readable`."""
    abi = version()
    files = FILE_RIGHTS[min(abi, 5)]
    paths = {path: READ if Path(path).is_dir() else READ & ~READ_DIR for path in readable}
    paths |= {"/dev/null": READ_FILE | WRITE_FILE, "/dev/zero": READ_FILE, "/dev/urandom": READ_FILE}
    paths[workspace] = files & ~(MAKE_CHAR | MAKE_BLOCK | MAKE_SOCK)
    size = 24 if abi >= SCOPES_SINCE else 16 if abi >= NETWORK_SINCE else 8
    network = NETWORK_RIGHTS if abi >= NETWORK_SINCE else 0
    return Confinement(files, network, SCOPES if abi >= SCOPES_SINCE else 0, size, paths)


def start(command: list[str], channel: int, identity: dict[str, Any]) -> tuple[subprocess.Popen[bytes], str]:
    """The server outside any namespace, and the folder of its workspaces, which the caller removes after it."""
    # In memory where possible: a control group then bounds what is written, too.
    folder = tempfile.mkdtemp(prefix="noria-sandbox-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    if identity:
        os.chown(folder, identity["user"], identity["group"])
    process = subprocess.Popen(
        command,
        stdin=channel,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=dict(FIXED),
        cwd="/",
        start_new_session=True,
        **identity,
    )
    return process, folder
