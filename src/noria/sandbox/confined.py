"""The same sandbox for a long-lived program that you chose and that need not be bounded: an MCP server, say."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from noria.sandbox import bubblewrap
from noria.sandbox.check import SandboxUnavailable, check
from noria.sandbox.limits import Limits, Profile


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
    report = check()
    if not report.available:
        raise SandboxUnavailable(report.detail)
    program, profile = bubblewrap.find(), Profile()
    assert program is not None, "check() found one"
    bare = bubblewrap.mounts_and_limits(Limits(), profile, {path: path for path in bubblewrap.readable_paths(profile)})
    arguments = [program, *(argument for argument in bare if argument != "--as-pid-1")]
    mounts = ["--tmpfs", "/tmp"]
    for kind, folders in (("--ro-bind", (Path(sys.prefix), *readable)), ("--bind", writable)):
        for one in folders:
            mounts += [kind, str(one.absolute()), str(one.absolute())]
    for name, value in {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", **(environment or {})}.items():
        mounts += ["--setenv", name, value]
    start = ["--chdir", str(folder.absolute())] if folder else []
    sealed = arguments.index("--remount-ro")
    return [*arguments[:sealed], *mounts, *start, *arguments[sealed:], *argv]
