"""One agent's conversation while it is being made: the program's view, the reply, its calls and their results.

A trace is the main agent's conversation and those of its sub-agents, all writing nodes into one list.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from noria.harness.budget import Budget, Sampling
from noria.harness.changes import changed, changes
from noria.harness.guard import guarded
from noria.harness.known_tokens import counted, extended, prompt_tokens, tokens_said
from noria.harness.policy import ChatPolicy, ModelFailed, Prompt, Reply, Turn
from noria.harness.program import Action, Program, State
from noria.harness.subagents import ASSIGN, CREATE, DESCRIPTIONS, NOTES, SubAgents, create
from noria.harness.tools import Described, InvalidCall, SandboxFailed, ToolResult, Tools
from noria.harness.tools.toolbox import ERROR, INVALID, bind, own_text, parameters_schema
from noria.inference import SamplingParams
from noria.inference.tool_calls import ToolSpec
from noria.types import Message, Node, Task, ToolUse, seed_of, split_thinking

COUNTS = ("tool_calls", "invalid_calls", "failed_calls", "backstop_fired")


@dataclass(eq=False)
class Slot:
    """One call of a reply, until its result is recorded. Results are recorded in the order of the calls."""

    action: Action
    arguments: Mapping[str, Any] = field(default_factory=dict)
    before: tuple[Mapping[str, str], Mapping[str, Any]] = ({}, {})  # files and notes that the call acted on
    result: ToolResult | SandboxFailed | None = None
    helper: Conversation | None = None  # the sub-agent that works on it
    tool: str = ""  # that it reached

    @property
    def changed_files(self) -> Mapping[str, Any]:
        return changes(self.before[0], self.result.files) if isinstance(self.result, ToolResult) else {}


@dataclass(eq=False)
class Conversation:
    task: Task
    seed: int
    policy: ChatPolicy
    program: Program
    budget: Budget
    tools: Tools | None
    nodes: list[Node]
    subagents: SubAgents | None = None
    agent: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    outcome: str = ""
    turn: int = 0
    sampled_tokens: int = 0
    last: tuple[int, ...] = ()  # the node that the next one follows
    history: list[int] = field(default_factory=list)  # the nodes that `state.messages` consists of
    actions: deque[Action] = field(default_factory=deque)  # of the reply, not yet begun
    slots: deque[Slot] = field(default_factory=deque)  # begun, not yet recorded
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    helpers: list[Conversation] = field(default_factory=list)  # all that there were
    sandbox: str = ""
    bug: Exception | None = None  # of the user's own code, for which there was no reply

    def __post_init__(self) -> None:
        self._saw: dict[int, tuple[int, ...]] = {}  # sampled node -> the nodes of its view
        self._shown: tuple[int, ...] = ()
        self._allowed: tuple[str, ...] = ()
        self._tools_shown: tuple[ToolSpec, ...] = ()
        self._prompt = Prompt("")
        self._before_turn = 0
        self._context_used = 0

    # -- before the model --

    @property
    def waits(self) -> bool:
        """Whether calls of the last reply are still to be run or recorded."""
        return bool(self.actions or self.slots)

    def add(self, message: Message, parents: tuple[int, ...] | None = None) -> None:
        """A message for the history."""
        self._node(message, self.last if parents is None else parents)
        self.history.append(len(self.nodes) - 1)

    def prepare(self, sampling: Sampling) -> Turn | None:
        """Ask the program for its view and lay it out. None where the conversation ends here instead."""
        if self.turn >= self.budget.turns:
            self.outcome = "tool_limit"
        elif self._tokens_left() < 1:
            self.outcome = "truncated"
        if self.outcome:
            return None
        try:
            self._allowed = guarded(self.program.harness.tools, self.state())
            for name in self._allowed:
                if not isinstance(name, str):
                    raise TypeError(f"tools must return names, not {name!r:.60} ({type(name).__name__})")
        except Exception as error:  # noqa: BLE001 - a program may raise anything: recorded as the trace's outcome
            self._program_failed("tools", error)
            return None
        try:
            view = guarded(self.program.harness.view, self.state())
            if not view or not all(isinstance(message, Message) for message in view):
                raise TypeError("view must return at least one Message and nothing else")
            self._shown, tools = self._view_nodes(view), self._specs()
            seen = extended(self._shown, self.nodes, self._saw)
            said = tokens_said(seen) if tools == self._tools_shown else None
            self._tools_shown = tools
            self._prompt = self.policy.lay_out([self.nodes[place] for place in self._shown], tools, said)
        except Exception as error:  # noqa: BLE001 - as above
            self._program_failed("view", error)
            return None
        room = self.budget.context - prompt_tokens(self._prompt, seen)
        if room < 1:
            self.outcome = "context_limit"
            return None
        most = min(self.budget.tokens_per_turn, self._tokens_left(), room)
        seed = seed_of(self.seed, self.agent, self.turn) if self.agent else seed_of(self.seed, self.turn)
        params = SamplingParams(
            max_tokens=most,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=seed,
        )
        return Turn(self._prompt, params, view, self.task)

    # -- after the model --

    def accept(self, reply: Reply | ModelFailed) -> None:
        """Record what was said; its calls are then waiting in `actions`."""
        reply = counted(reply, self.budget)
        if isinstance(reply, ModelFailed):
            self.outcome, self.bug = "model_error", reply.bug
            self._node(Message("system", f"model error: {reply}"[:500]), tuple(self.history[-1:]))
            return
        call, actions = reply.call, reply.actions
        whole = self._shown == tuple(self.history)
        parents = self._shown[-1:] if whole else self._shown
        if not whole and len(parents) == 1 and self.nodes[parents[0]].parents:
            parents *= 2  # named once it would stand for all that led to it
        self._node(Message("assistant", actions[0].content), parents, call=call, view_hash=self._prompt.hash)
        place = len(self.nodes) - 1
        self.history.append(place)
        self._saw[place] = self._shown
        self.turn += 1
        self.sampled_tokens += call.sampled_tokens
        self._context_used = call.prompt_tokens + call.sampled_tokens
        if call.finish == "aborted":
            self.outcome = "aborted"
        elif call.finish == "length":
            self.outcome = "truncated"
        elif self._context_used > self.budget.context:  # of an endpoint, which counts only afterwards
            self.outcome = "context_limit"
        elif actions[0].kind == "answer":
            self._answered(actions[0])
        else:
            self.actions.extend(actions)
            self._before_turn = self.counts["tool_calls"] + self.counts["invalid_calls"]

    def next_call(self) -> Slot | None:
        """Begin the reply's next call. A slot without a result and without a helper is for the tools to run; None where
        nothing is left to begin."""
        if self.outcome or not self.actions:
            self.actions.clear()
            return None
        slot = Slot(self.actions.popleft(), before=(self.files, self.notes))
        try:
            self._begin(slot)
        except InvalidCall as refusal:
            self.counts["invalid_calls"] += 1
            slot.result = ToolResult(f"{INVALID}{refusal}", self.files, self.notes)
        if self.outcome:
            return None
        self.slots.append(slot)
        return slot

    def ran(self, slot: Slot, result: ToolResult | SandboxFailed) -> None:
        """The tools' result of a slot; the reply's later calls see what it changed."""
        slot.result = result
        if isinstance(result, ToolResult):
            self.files, self.notes = result.files, result.notes

    def record(self) -> None:
        """Record the results that are there, up to the first that is not, and let the program tell the model of
        each."""
        while self.slots and not self.outcome:
            slot = self.slots[0]
            parents = self.last
            if slot.helper is not None:
                if not slot.helper.outcome:
                    return
                if slot.helper.outcome in ("sandbox_error", "aborted", "model_error"):
                    self.outcome, self.bug = slot.helper.outcome, slot.helper.bug
                    return
                slot.result = _answer_of(slot.helper, slot)
                parents = (*parents, *(place for place in slot.helper.last if place not in parents))
            if slot.result is None:
                return
            self.slots.popleft()
            self._receive(slot, slot.result, parents)

    # -- inside --

    def state(self) -> State:
        return State(
            messages=tuple(self.nodes[place].message for place in self.history),
            turn=self.turn,
            turns_left=self.budget.turns - self.turn,
            tokens_left=self._tokens_left(),
            tool_calls=self.counts["tool_calls"],
            invalid_calls=self.counts["invalid_calls"],
            files=self.files,
            notes=self.notes,
            shown=tuple(self.nodes[place].message for place in self._shown) if self.turn else (),
            context_used=self._context_used,
            context_limit=self.budget.context,
            available=(*(self.tools.described if self.tools else ()), *(DESCRIPTIONS if self.subagents else ())),
        )

    def _tokens_left(self) -> int:
        return self.budget.tokens - self.sampled_tokens

    def _node(self, message: Message, parents: tuple[int, ...], **more: Any) -> None:
        self.nodes.append(Node(parents, message, agent=self.agent, **more))
        self.last = (len(self.nodes) - 1,)

    def _answered(self, action: Action) -> None:
        """The end, unless the program goes on after it."""
        go_on = getattr(self.program.harness, "answered", None)
        try:
            messages = guarded(go_on, self.state(), action) if go_on else ()
            for message in messages:
                _must_be_message(message, "answered")
                self.add(message)
        except Exception as error:  # noqa: BLE001 - as in `prepare`
            self._program_failed("answered", error)
            return
        if not messages:
            self.outcome = "finished"

    def _begin(self, slot: Slot) -> None:
        """Bind and count the call; those of the rollout itself are begun here. Raises InvalidCall."""
        action = slot.action
        begun = self.counts["tool_calls"] + self.counts["invalid_calls"] - self._before_turn
        if begun >= self.budget.calls_per_turn:
            raise InvalidCall(f"one reply may hold {self.budget.calls_per_turn} calls")
        if action.malformed:
            raise InvalidCall(action.malformed)
        own = self.subagents is not None and action.tool in DESCRIPTIONS
        if action.tool not in self._allowed or not (own or (self.tools and action.tool in self.tools.described)):
            raise InvalidCall(f"no tool {action.tool}")
        slot.tool = action.tool
        if own:
            slot.arguments = bind(DESCRIPTIONS[action.tool], action.argument)
        else:
            assert self.tools is not None
            slot.arguments = self.tools.bind(action.tool, action.argument)
        if self.counts["tool_calls"] >= self.budget.tool_calls:
            self.outcome = "tool_limit"
            return
        if own and self.subagents is not None:
            self._begin_own(slot, self.subagents)
        self.counts["tool_calls"] += 1

    def _begin_own(self, slot: Slot, given: SubAgents) -> None:
        known: Mapping[str, str] = self.notes.get(NOTES, {})
        if slot.tool == CREATE:
            made = create(slot.arguments, known, given.agents)
            text = f"created {slot.arguments['name']}"
            self.ran(slot, ToolResult(text, self.files, {**self.notes, NOTES: made}))
            return
        name = slot.arguments["agent"]
        if name not in known:
            raise InvalidCall(f"{ASSIGN}: there is no helper {name}")
        if len(self.helpers) >= given.assignments:
            raise InvalidCall(f"{ASSIGN}: {given.assignments} tasks were assigned, more are not allowed")
        earlier = sum(helper.agent.partition("#")[0] == name for helper in self.helpers)
        label = f"{name}#{earlier + 1}" if earlier else name
        slot.helper = self._helper(given, label, known[name], slot.arguments["prompt"])
        self.helpers.append(slot.helper)

    def _helper(self, given: SubAgents, label: str, system_prompt: str, task: str) -> Conversation:
        of_agent = getattr(self.tools, "of_agent", None)  # a tape keeps each agent's results apart
        helper = Conversation(
            self.task,
            self.seed,
            given.policy or self.policy,
            given.program,
            given.budget,
            of_agent(label) if of_agent else self.tools,
            self.nodes,
            agent=label,
            files=self.files,
        )
        helper.add(Message("system", system_prompt), (max(self._saw),))  # the reply whose calls are being run
        helper.add(Message("user", task))
        return helper

    def _receive(self, slot: Slot, result: ToolResult | SandboxFailed, parents: tuple[int, ...]) -> None:
        if isinstance(result, SandboxFailed):
            self.outcome = "sandbox_error"
            return
        files, notes = slot.before
        use = ToolUse(
            slot.tool, slot.arguments, result.deterministic, changes(files, result.files), changes(notes, result.notes)
        )
        if slot.helper is not None:  # what it changed of its copy comes now; calls behind it have the last word
            later = {path for other in self.slots if other.result for path in other.changed_files}
            mine = {path: text for path, text in use.files.items() if path not in later}
            self.files = changed(self.files, mine)
        self.counts["failed_calls"] += int(result.failed)
        self.counts["backstop_fired"] += int(result.timed_out)
        self.sandbox = self.sandbox or result.sandbox
        text = result.text.encode("utf-8", "replace")[: self.budget.result_bytes].decode("utf-8", "ignore")
        raw = Message("tool", text)
        self._node(raw, parents, use=use)
        raw_node = len(self.nodes) - 1
        try:
            for message in guarded(self.program.harness.observe, self.state(), slot.action, text):
                _must_be_message(message, "observe")
                if message == raw:
                    self.history.append(raw_node)
                else:
                    self.add(message, (raw_node,))
        except Exception as error:  # noqa: BLE001 - as in `prepare`
            self._program_failed("observe", error)

    def _specs(self) -> tuple[ToolSpec, ...]:
        """The tools that the model is told of."""
        if not self.policy.shows_tools:
            return ()
        known: dict[str, Described] = {**(self.tools.described if self.tools else {})}
        known |= DESCRIPTIONS if self.subagents else {}
        names = [name for name in self._allowed if name in known]
        return tuple(ToolSpec(name, known[name].description, parameters_schema(known[name])) for name in names)

    def _view_nodes(self, view: Sequence[Message]) -> tuple[int, ...]:
        """The node of each message of the view: by identity where it was passed on, else a node of its own."""
        own = [(place, node) for place, node in enumerate(self.nodes) if node.agent == self.agent]
        by_identity = {id(node.message): place for place, node in own}
        places = []
        for message in view:
            place = by_identity.get(id(message))
            if place is None:
                composed = (i for i, node in own if node.call is None and node.message == message)
                place = next(composed, None)
            if place is None:
                self.nodes.append(Node((), message, agent=self.agent))
                place = len(self.nodes) - 1
                own.append((place, self.nodes[place]))
            places.append(place)
        return tuple(places)

    def _program_failed(self, method: str, error: Exception) -> None:
        self.outcome = "harness_error"
        note = f"harness error in {method} of {self.program.label}: {type(error).__name__}: {error}"
        self._node(Message("system", note[:500]), tuple(self.history[-1:]))


def _answer_of(helper: Conversation, slot: Slot) -> ToolResult:
    """What the main agent is told: the answer, or why there is none; and the helper's copy of the workspace.

    It is deterministic where all results are that the helper was given.
    """
    uses = (node.use for node in helper.nodes if node.use and node.agent == helper.agent)
    steady = all(use.deterministic for use in uses)
    reply = next((helper.nodes[i].message.content for i in reversed(helper.history) if helper.nodes[i].call), "")
    text = own_text(split_thinking(reply)[1])
    if helper.outcome != "finished":
        text = f"{ERROR}{helper.agent} ended with {helper.outcome}"
    return ToolResult(text, helper.files, slot.before[1], steady, helper.sandbox)


def _must_be_message(message: Any, method: str) -> None:
    if not isinstance(message, Message):
        raise TypeError(f"{method} must return messages, not {type(message).__name__}")
