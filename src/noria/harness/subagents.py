"""Sub-agents: an agent makes helpers and gives them tasks; those of one reply work side by side in the rollout's
batches.

`create_subagent(name, system_prompt)` and `assign_task(agent, prompt)` belong to the rollout, as in PARL (Kimi K2.5,
arXiv 2602.02276). An assignment is a conversation of its own: the system prompt, the task, and a copy of the workspace
as it is then. Its answer is the call's result; what it changed of the workspace comes with it, in the order of the
calls. Its nodes stand in the same trace with `agent` set: the name, then name#2 and so on for further assignments.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from noria.harness.tools.toolbox import Described, InvalidCall, Parameter
from noria.types import Trace

if TYPE_CHECKING:
    from noria.harness.budget import Budget
    from noria.harness.policy import ChatPolicy
    from noria.harness.program import Program

CREATE, ASSIGN = "create_subagent", "assign_task"
NOTES = "subagents"  # the key of the trace's notes: name -> system prompt

DESCRIPTIONS: Mapping[str, Described] = {
    CREATE: Described(
        CREATE,
        "create_subagent NAME SYSTEM_PROMPT: make a helper that tasks can be assigned to",
        (Parameter("name", "one word"), Parameter("system_prompt", "what it is to know and how to work")),
    ),
    ASSIGN: Described(
        ASSIGN,
        "assign_task AGENT PROMPT: give a helper a task, answered by the result; those of one reply run side by side",
        (Parameter("agent", "the helper's name"), Parameter("prompt", "the task, with all that it must know")),
    ),
}


@dataclass(frozen=True)
class SubAgents:
    """What sub-agents are given: a program, a budget for each assignment, and at most so many of either.

    `policy` replies for them; None is the main agent's own. (PARL trains only the main agent: its sub-agents are an
    earlier checkpoint, and what they say is observation.) They make no sub-agents of their own.
    """

    program: Program
    budget: Budget
    agents: int = 8
    assignments: int = 32  # of a whole trace
    policy: ChatPolicy | None = None

    def __post_init__(self) -> None:
        if self.agents < 1 or self.assignments < 1:
            raise ValueError("agents and assignments must be at least 1")


def create(arguments: Mapping[str, Any], known: Mapping[str, str], most: int) -> dict[str, str]:
    """The helpers with the new one. Raises InvalidCall."""
    name = arguments["name"]
    if not name.isidentifier():
        raise InvalidCall(f"{CREATE}: the name must be one word of letters, digits and _")
    if name in known:
        raise InvalidCall(f"{CREATE}: there is a {name} already")
    if len(known) >= most:
        raise InvalidCall(f"{CREATE}: there are {most} helpers, more are not allowed")
    return {**known, name: arguments["system_prompt"]}


def critical_steps(trace: Trace) -> int:
    """The length of the longest chain of model calls that had to wait for each other: sum over stages of (calls of the
    main agent + the most calls that one of its sub-agents made). Section 3 of arXiv 2602.02276."""
    return sum(1 + max(assigned.values(), default=0) for assigned in stages(trace))


def stages(trace: Trace) -> list[dict[str, int]]:
    """For each model call of the main agent: the assignments it made, label -> model calls of that sub-agent."""
    replies = [place for place, node in enumerate(trace.nodes) if node.call and not node.agent]
    started: dict[str, int] = {}  # label -> the reply that assigned it
    calls: defaultdict[str, int] = defaultdict(int)
    for node in trace.nodes:
        if node.agent:
            started.setdefault(node.agent, node.parents[0])
            calls[node.agent] += node.call is not None
    return [{label: calls[label] for label, by in started.items() if by == reply} for reply in replies]
