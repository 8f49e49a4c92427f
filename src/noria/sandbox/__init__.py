"""Runs code that a model wrote, bounded and away from everything else. There is no unsandboxed mode.

`run_functions(candidates)` for graders, `Sandbox` to keep one over many batches, `Workspace` for tools that act on
files, `check()` for what this machine can do.
"""

from noria.sandbox.box import Candidate, Outcome, Sandbox, Workspace, run_functions
from noria.sandbox.bubblewrap import Report, SandboxUnavailable, check, confined
from noria.sandbox.limits import Limits

__all__ = [
    "Candidate",
    "Limits",
    "Outcome",
    "Report",
    "Sandbox",
    "SandboxUnavailable",
    "Workspace",
    "check",
    "confined",
    "run_functions",
]
