"""Namespaces for a long-lived program that you chose and that need not be bounded: an MCP server, say.

Less than `Sandbox` gives, and for another use: no seccomp filter, no limits, your own user in another namespace.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from noria.sandbox.bubblewrap import NOBODY, find, readable_paths
from noria.sandbox.check import SandboxUnavailable, check
from noria.sandbox.limits import Profile


def confined(
    argv: Sequence[str],
    readable: Sequence[Path] = (),
    writable: Sequence[Path] = (),
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[str]:
    """The command that runs `argv` without network, capabilities and any files but the system's, this environment's
    packages and the folders given, at their own paths; /tmp and /work are its own and empty.

    `folder` is where it starts, else /work. Raises SandboxUnavailable.
    """
    report, path = check(), find()
    if not report.available or path is None:
        raise SandboxUnavailable(report.detail)
    arguments = [path, "--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL", "--new-session"]
    arguments += ["--die-with-parent", "--clearenv", "--uid", str(NOBODY), "--gid", str(NOBODY)]
    for name in ("lib", "lib64", "lib32", "bin"):
        top = Path("/", name)
        if top.is_symlink():
            arguments += ["--symlink", f"usr/{name}", str(top)]
        elif top.is_dir():
            arguments += ["--ro-bind", str(top), str(top)]
    for shown in readable_paths(Profile()):
        arguments += ["--ro-bind", shown, shown]
    for device in ("null", "zero", "urandom"):
        arguments += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    arguments += ["--tmpfs", "/tmp", "--tmpfs", "/work"]
    for kind, folders in (("--ro-bind", (Path(sys.prefix), *readable)), ("--bind", writable)):
        for one in folders:
            arguments += [kind, str(one.absolute()), str(one.absolute())]
    for name, value in {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", **(environment or {})}.items():
        arguments += ["--setenv", name, value]
    start = str(folder.absolute()) if folder else "/work"
    return [*arguments, "--chdir", start, "--remount-ro", "/", *argv]
