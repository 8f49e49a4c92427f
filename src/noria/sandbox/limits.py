"""What one candidate may use. All bounds hold inside the sandbox, by rlimits of the candidate's own process."""

from __future__ import annotations

from dataclasses import dataclass

MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Bounds of one candidate or tool command.

    `cpu_seconds` ends a loop that computes; `wall_seconds` is a backstop for one that sleeps. Either firing is the
    status "timeout", never a wrong answer: how far a candidate got by then depends on the machine.
    """

    cpu_seconds: int = 2
    wall_seconds: float = 10.0
    memory_bytes: int = 512 * MEGABYTE
    file_bytes: int = 1 * MEGABYTE  # each file that it writes, its result and its output among them
    workspace_bytes: int = 16 * MEGABYTE  # all files of a workspace together
    open_files: int = 32
    processes: int = 16  # for commands; a function never forks
    output_bytes: int = 8192  # of stdout and stderr that is kept
    source_bytes: int = 64 * 1024

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"sandbox limit {name} = {value}: must be above 0")
