"""The recorded replies and tool results of one trace, played again: a policy and tools in one.

A replay runs the program, and asserts at every turn that the policy would see what it saw.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any

from noria.harness.changes import changed
from noria.harness.policy import ChatPolicy, ModelFailed, Prompt, Reply, Said, Turn
from noria.harness.subagents import DESCRIPTIONS
from noria.harness.tools import Described, InvalidCall, SandboxFailed, ToolCall, ToolResult
from noria.harness.tools.toolbox import INVALID
from noria.inference.tool_calls import ToolSpec
from noria.types import ModelCall, Node, Trace

NO_TOOL = f"{INVALID}no tool "
NO_REPLY = "model error: "


class ReplayMismatch(AssertionError):
    """The replay left the tape; the message names the turn and what differs."""


class Tape:
    """`policy` lays out the views as the recorded one did; it is never asked for a reply. `tools` need be given only
    where views or prompts tell of tools: to chat models, or by a program that reads `state.available`."""

    def __init__(self, trace: Trace, policy: ChatPolicy, tools: Sequence[Described] = ()) -> None:
        self.trace, self._policy = trace, policy
        self.shows_tools = policy.shows_tools
        self._replies = deque(node for node in trace.nodes if node.call is not None)
        self._failures = deque(
            node.message.content.removeprefix(NO_REPLY)
            for node in trace.nodes
            if trace.outcome == "model_error" and node.message.role == "system" and not node.call
            if node.message.content.startswith(NO_REPLY)
        )
        self._results: dict[str, deque[Node]] = defaultdict(deque)
        given = trace.facts.get("assignments") is not None
        for node in trace.nodes:
            if node.use and node.use.tool and not (given and node.use.tool in DESCRIPTIONS and not node.agent):
                self._results[node.agent].append(node)
        self.described: Mapping[str, Described] = {tool.name: tool for tool in tools} or _AllBut(trace, "")
        self._bound: dict[int, tuple[Any, Node]] = {}  # by the arguments' identity, which is kept alive beside
        self._turn = -1

    # -- as a policy --

    def lay_out(self, view: Sequence[Node], tools: Sequence[ToolSpec], said: Said | None) -> Prompt:
        return self._policy.lay_out(view, tools, said)

    def read(self, call: ModelCall, content: str) -> Any:
        return self._policy.read(call, content)

    def reply(self, turns: Sequence[Turn]) -> list[Reply | ModelFailed]:
        return self.replies(turns, self._policy)

    def laid_out_by(self, policy: ChatPolicy) -> ChatPolicy:
        """The same tape for sub-agents, whose views `policy` laid out and whose replies it reads."""
        return _HelperTape(self, policy)

    def replies(self, turns: Sequence[Turn], policy: ChatPolicy) -> list[Reply | ModelFailed]:
        return [self._reply(turn, policy) for turn in turns]

    def _reply(self, turn: Turn, policy: ChatPolicy) -> Reply | ModelFailed:
        self._turn += 1
        if self._failures and (not self._replies or turn.prompt.hash != self._replies[0].view_hash):
            return ModelFailed(self._failures.popleft())
        if not self._replies:
            raise ReplayMismatch(f"trace {self.trace.id}: turn {self._turn} was never sampled")
        node = self._replies.popleft()
        assert node.call is not None
        where = f"trace {self.trace.id}: the view of turn {self._turn}"
        own = "; where sub-agents had a policy of their own, give it with them" if node.agent else ""
        if bool(turn.prompt.ids) == (node.call.endpoint is not None):
            was, now = ("an endpoint", "tokens") if turn.prompt.ids else ("tokens", "an endpoint")
            raise ReplayMismatch(f"{where} was laid out for {was}, and the policy given lays it out for {now}{own}")
        if turn.prompt.ids != node.call.prompt_ids:
            raise ReplayMismatch(
                f"{where} has other tokens than the recorded one "
                f"({len(turn.prompt.ids)} against {len(node.call.prompt_ids)}, first difference at "
                f"{_first_difference(turn.prompt.ids, node.call.prompt_ids)}){own}"
            )
        if turn.prompt.hash != node.view_hash:
            raise ReplayMismatch(f"{where} is not the recorded one{own}")
        return Reply(node.call, policy.read(node.call, node.message.content))

    # -- as tools --

    def of_agent(self, agent: str) -> _AgentTape:
        """The tools of a sub-agent: its own results."""
        return _AgentTape(self, agent)

    def bind(self, tool: str, argument: str | Mapping[str, Any]) -> Mapping[str, Any]:
        return self.bind_of("", tool)

    def bind_of(self, agent: str, tool: str) -> Mapping[str, Any]:
        """The recorded arguments of the agent's next call."""
        results = self._results[agent]
        if not results:
            return {}
        node = results.popleft()
        assert node.use is not None
        if node.use.tool != tool:
            raise ReplayMismatch(f"trace {self.trace.id}: a call of {tool} where {node.use.tool} was recorded")
        if node.message.content.startswith(INVALID):
            raise InvalidCall(node.message.content.removeprefix(INVALID))
        arguments = node.use.arguments
        self._bound[id(arguments)] = arguments, node
        return arguments

    def run(self, calls: Sequence[ToolCall]) -> list[ToolResult | SandboxFailed]:
        return [self._result(call) for call in calls]

    def _result(self, call: ToolCall) -> ToolResult | SandboxFailed:
        if id(call.arguments) not in self._bound:
            return SandboxFailed("as recorded")
        _, node = self._bound.pop(id(call.arguments))
        assert node.use is not None
        files, notes = changed(call.files, node.use.files), changed(call.notes, node.use.notes)
        return ToolResult(node.message.content, files, notes, node.use.deterministic, self.trace.sandbox)


class _HelperTape:
    def __init__(self, tape: Tape, policy: ChatPolicy) -> None:
        self.tape, self._policy = tape, policy
        self.shows_tools = policy.shows_tools

    def lay_out(self, view: Sequence[Node], tools: Sequence[ToolSpec], said: Said | None) -> Prompt:
        return self._policy.lay_out(view, tools, said)

    def read(self, call: ModelCall, content: str) -> Any:
        return self._policy.read(call, content)

    def reply(self, turns: Sequence[Turn]) -> list[Reply | ModelFailed]:
        return self.tape.replies(turns, self._policy)


class _AllBut(dict[str, Described]):
    """Every tool that the program allows was there, but those that the trace says this agent had not."""

    def __init__(self, trace: Trace, agent: str) -> None:
        own = [node for node in trace.nodes if node.use and node.agent == agent]
        reached = (node.use.tool for node in own if node.use and node.use.tool)
        super().__init__({name: Described(name, "", ()) for name in reached})
        told = (node.message.content for node in own if node.use and not node.use.tool)
        # A tool that was reached elsewhere was there: it was refused where the program did not allow it, as it will be.
        self._missing = {text.removeprefix(NO_TOOL) for text in told if text.startswith(NO_TOOL)} - set(self)

    def __contains__(self, name: object) -> bool:
        return name not in self._missing


class _AgentTape:
    def __init__(self, tape: Tape, agent: str) -> None:
        self.tape, self.agent, self.described = tape, agent, tape.described
        if isinstance(tape.described, _AllBut):
            self.described = _AllBut(tape.trace, agent)

    def bind(self, tool: str, argument: str | Mapping[str, Any]) -> Mapping[str, Any]:
        return self.tape.bind_of(self.agent, tool)

    def run(self, calls: Sequence[ToolCall]) -> list[ToolResult | SandboxFailed]:
        return self.tape.run(calls)


def _first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int:
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
