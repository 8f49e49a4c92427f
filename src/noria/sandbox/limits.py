"""What one candidate may use, and what of the machine it is shown."""

from __future__ import annotations

from dataclasses import dataclass

MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Bounds of one candidate or tool command.

    `cpu_seconds` ends a loop that computes; `wall_seconds` is a backstop for one that sleeps. Either firing is the
    status "timeout" without a result: how far a candidate got by then depends on the machine. CPU, file size and
    open files are bounded for each process. Memory is, too, and where control groups can be made here it is bounded for
    all processes together; so is their number (`check` says which holds).
    """

    cpu_seconds: int = 2
    wall_seconds: float = 10.0
    memory_bytes: int = 512 * MEGABYTE
    file_bytes: int = 1 * MEGABYTE  # each file that it writes, its result and its output among them
    workspace_bytes: int = 16 * MEGABYTE  # all files of a workspace together; half of it carries over to the next call
    open_files: int = 32
    processes: int = 16  # threads among them; a function never forks
    output_bytes: int = 8192  # of stdout and stderr that is kept
    source_bytes: int = 64 * 1024

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"sandbox limit {name} = {value}: must be above 0")


@dataclass(frozen=True)
class Profile:
    """What the sandbox shows and allows; the default is the least, and enough for Python functions and small programs.

    `read_only` are further paths of the host, shown at the same place (those that don't exist here are left out): all
    that lies there can be read by the candidate. `scratch_bytes` is the size of each of /tmp and /dev/shm, which are
    emptied after every job. Without `bounds_address_space` a program may reserve more memory than it uses; then only a
    control group bounds what it uses, and a machine without one refuses the profile.
    """

    name: str = "least"
    proc: bool = False  # a /proc that shows the sandbox's own processes
    scratch_bytes: int = 0
    unix_sockets: bool = False  # between processes of the sandbox
    read_only: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    bounds_address_space: bool = True


# For programs that want a temporary folder and look at their own processes: shells, compilers, interpreters.
PROGRAMS = Profile("programs", proc=True, scratch_bytes=16 * MEGABYTE)

# The least in which Debian's Chromium starts (with --no-sandbox: it can't nest its own; this is the sandbox). It aborts
# without /proc, /tmp or Unix sockets, and reserves far more address space than any limit on that would allow.
BROWSER = Profile(
    "browser",
    proc=True,
    scratch_bytes=64 * MEGABYTE,
    unix_sockets=True,
    read_only=("/etc/fonts", "/var/cache/fontconfig", "/etc/chromium.d", "/etc/chromium"),
    bounds_address_space=False,
)
BROWSER_LIMITS = Limits(
    cpu_seconds=30,
    wall_seconds=60.0,
    memory_bytes=1024 * MEGABYTE,
    file_bytes=32 * MEGABYTE,
    workspace_bytes=128 * MEGABYTE,
    open_files=512,
    processes=256,
    output_bytes=1 * MEGABYTE,
)
