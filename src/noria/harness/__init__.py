"""The agent harness: programs, rollouts with tools, traces on disk.

`rollout` makes traces, single-turn ones too, and an `Arena` makes many with one sandbox; `load_program` reads a harness
program; `save`, `load`, `regrade` and `replay` are for traces on disk.
"""

from noria.harness.arena import Arena
from noria.harness.program import Action, Program, ProgramError, State, load_program, program_from_source
from noria.harness.rollout import Budget, Sampling, rollout
from noria.harness.scripted import ScriptedSampler
from noria.harness.tools import FILE_TOOLS, Toolbox
from noria.harness.traces import Recorded, ReplayMismatch, TraceFileError, load, regrade, replay, save

__all__ = [
    "FILE_TOOLS",
    "Action",
    "Arena",
    "Budget",
    "Program",
    "ProgramError",
    "Recorded",
    "ReplayMismatch",
    "Sampling",
    "ScriptedSampler",
    "State",
    "Toolbox",
    "TraceFileError",
    "load",
    "load_program",
    "program_from_source",
    "regrade",
    "replay",
    "rollout",
    "save",
]
