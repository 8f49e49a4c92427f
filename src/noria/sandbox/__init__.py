"""Runs code that a model wrote, bounded and away from everything else. There is no unsandboxed mode.

`run_functions(candidates)` for graders, `Sandbox` to keep one over many batches, `Workspace` for tools that act on
files, `check()` for what this machine can do.
"""

from noria.sandbox.box import Candidate, Outcome, Sandbox, Workspace, run_functions
from noria.sandbox.check import Report, SandboxUnavailable, check
from noria.sandbox.limits import BROWSER, BROWSER_LIMITS, PROGRAMS, Limits, Profile

__all__ = [
    "BROWSER",
    "BROWSER_LIMITS",
    "PROGRAMS",
    "Candidate",
    "Limits",
    "Outcome",
    "Profile",
    "Report",
    "Sandbox",
    "SandboxUnavailable",
    "Workspace",
    "check",
    "run_functions",
]
