"""The agent harness: programs, rollouts with tools, traces on disk.

`rollout` makes traces, single-turn ones too, `rollouts` any number of them in bounded memory, and an `Arena` many with
one sandbox; who replies is an engine with its tokenizer, an `EndpointPolicy` or a `ScriptedPolicy`. `load_program`
reads a harness program, `bootstrapped` opens its first prompt with a snapshot of the workspace; `save`, `load`,
`regrade` and `replay` are for traces on disk.
"""

from noria.harness.arena import Arena
from noria.harness.bootstrap import bootstrapped
from noria.harness.endpoint import Endpoint, EndpointPolicy
from noria.harness.policy import ChatPolicy, ImportedPolicy, ScriptedPolicy, TokenPolicy
from noria.harness.program import Action, Program, ProgramError, State, load_program, program_from_source
from noria.harness.rollout import Budget, Sampling, rollout, rollouts
from noria.harness.scripted import ScriptedSampler
from noria.harness.subagents import SubAgents, critical_steps
from noria.harness.tools import FILE_TOOLS, Toolbox
from noria.harness.traces import Recorded, ReplayMismatch, TraceFileError, TraceWriter, load, regrade, replay, save

__all__ = [
    "FILE_TOOLS",
    "Action",
    "Arena",
    "Budget",
    "ChatPolicy",
    "Endpoint",
    "EndpointPolicy",
    "ImportedPolicy",
    "Program",
    "ProgramError",
    "Recorded",
    "ReplayMismatch",
    "Sampling",
    "ScriptedPolicy",
    "ScriptedSampler",
    "State",
    "SubAgents",
    "TokenPolicy",
    "Toolbox",
    "TraceFileError",
    "TraceWriter",
    "bootstrapped",
    "critical_steps",
    "load",
    "load_program",
    "program_from_source",
    "regrade",
    "replay",
    "rollout",
    "rollouts",
    "save",
]
