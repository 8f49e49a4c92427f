"""What it takes to run kept traces again: their tokenizer, program, budget and, where tools are wanted, a sandbox."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from noria.studio.traces.place import (
    Given,
    NotKnown,
    Place,
    budget_of,
    environment_of,
    program_of,
    required_tokenizer,
)

if TYPE_CHECKING:
    from noria.data.chat_tokenizer import ChatTokenizer
    from noria.harness.environments.environment import Environment
    from noria.harness.policy import ChatPolicy
    from noria.harness.program import Program
    from noria.harness.rollout import Budget
    from noria.harness.subagents import SubAgents
    from noria.harness.tools import Toolbox
    from noria.harness.traces import Entry
    from noria.sandbox import Sandbox
    from noria.types import Task, Trace


@dataclass(frozen=True)
class Made:
    """With what one trace was made."""

    task: Task
    tokenizer: ChatTokenizer | None
    policy: ChatPolicy | None  # of a trace whose replies an endpoint gave
    program: Program
    budget: Budget
    environment: Environment
    workshop: Workshop

    def tools(self) -> Toolbox:
        return self.workshop.tools(self.environment)

    @property
    def subagents(self) -> SubAgents | None:
        """What the environment gives its helpers, where the trace could have some."""
        return self.environment.subagents


class Workshop:
    """Use as a context manager. Things are loaded once, the sandbox starts when tools are first asked for."""

    def __init__(self, place: Place, given: Given) -> None:
        self._place, self._given = place, given
        self._tokenizer: ChatTokenizer | None = None
        self._box: Sandbox | None = None
        self._environments: dict[str, Environment] = {}
        self._programs: dict[str, Program] = {}
        self._toolboxes: dict[str, Toolbox] = {}

    def __enter__(self) -> Workshop:
        return self

    def __exit__(self, *_: object) -> None:
        if self._box is not None:
            self._box.close()

    def made(self, entry: Entry) -> Made:
        """Raises NotKnown with the option that would tell what is missing."""
        if entry.task is None:
            raise NotKnown(f"trace {entry.trace.id} was kept without its task: it can't be run again")
        policy = _policy_of(entry.trace)
        if policy is None:
            self._tokenizer = self._tokenizer or required_tokenizer(self._place, self._given)
        family = entry.task.family
        if family not in self._environments:
            self._environments[family] = environment_of(entry, self._given)
        environment = self._environments[family]
        harness = f"{entry.trace.harness} {family}"
        if harness not in self._programs:
            self._programs[harness] = program_of(entry, self._place, self._given, environment)
        budget = budget_of(self._place, self._given, environment)
        return Made(entry.task, self._tokenizer, policy, self._programs[harness], budget, environment, self)

    def tools(self, environment: Environment) -> Toolbox:
        from noria.harness.examine import TOOL_LIMITS
        from noria.harness.tools import Toolbox
        from noria.sandbox import Sandbox

        if self._box is None:
            self._box = Sandbox(TOOL_LIMITS)
        if environment.name not in self._toolboxes:
            self._toolboxes[environment.name] = Toolbox(self._box, environment.tools)
        return self._toolboxes[environment.name]


def _policy_of(trace: Trace) -> ChatPolicy | None:
    """What lays views out for the endpoint that was asked, and is asked nothing; None for replies of tokens.

    A trace that failed before its first reply is not compared with anything: an endpoint's layout does for it.
    """
    from noria.harness import Endpoint, EndpointPolicy

    calls = [node.call for node in trace.nodes if node.call and not node.agent]
    replied = calls[0].endpoint if calls else None
    if replied is None and (calls or trace.outcome != "model_error"):
        return None
    return EndpointPolicy(Endpoint("http://localhost/v1", replied.model if replied else "unknown", connections=1))
