"""Rollouts: policies meet tasks. Many traces advance together, one batch of model calls and one of tool calls a turn.

This file owns sampling, tools, budgets, seeds and the trace; the program decides only what is seen. Token in, token
out: the ids that were sampled are never made again from text, so each prompt extends the last one exactly where the
program shows the whole history. A single-turn rollout is the same loop with the plain program and no tools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from noria.data.tokenizer import Tokenizer
from noria.harness.program import Action, Program, State
from noria.harness.tools import InvalidCall, SandboxFailed, ToolCall, ToolResult, Tools
from noria.harness.tools.toolbox import INVALID
from noria.inference import Completion, Request, Sampler, SamplingParams
from noria.types import Message, ModelCall, Node, Task, ToolUse, Trace, digest, seed_of

COUNTS = ("tool_calls", "invalid_calls", "failed_calls", "backstop_fired")


@dataclass(frozen=True)
class Budget:
    """What one trace may use, in units that do not depend on the machine."""

    turns: int = 1  # model calls
    tokens_per_turn: int = 64  # sampled
    tokens: int = 1 << 20  # sampled, all turns together
    context: int = 1 << 20  # tokens that prompt and reply may fill together; the model's context
    result_bytes: int = 2048  # of a tool's result that are shown

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"budget {name} = {value}: must be at least 1")


@dataclass(frozen=True)
class Sampling:
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


def rollout(
    tasks: Sequence[Task],
    seeds: Sequence[int],
    sampler: Sampler,
    tokenizer: Tokenizer,
    program: Program,
    *,
    budget: Budget,
    tools: Tools | None = None,
    sampling: Sampling | None = None,
) -> list[Trace]:
    """One trace a task, in order. Equal arguments give equal traces.

    `seeds[i]` is the seed of task i's trace; turn t samples with seed_of(seed, t). A task's workspace is
    `task.hidden["files"]` (name -> text), each trace has its own copy.
    """
    if len(tasks) != len(seeds):
        raise ValueError(f"{len(tasks)} tasks and {len(seeds)} seeds: give one seed a task")
    sampling = sampling or Sampling()
    segments: dict[Message, tuple[int, ...]] = {}
    live = [_Live(task, seed, tokenizer, program, budget, segments) for task, seed in zip(tasks, seeds, strict=True)]
    while True:
        ready = [trace for trace in live if not trace.outcome and trace.prepare()]
        if not ready:
            return [trace.finish() for trace in live]
        completions = sampler.generate([trace.request(sampling) for trace in ready])
        actions = [list(trace.accept(completion)) for trace, completion in zip(ready, completions, strict=True)]
        while any(actions):
            _run_next_calls(list(zip(ready, actions, strict=True)), tools)


def _run_next_calls(acting: Sequence[tuple[_Live, list[Action]]], tools: Tools | None) -> None:
    """The next call of every trace's reply, together. A reply's later calls see what the earlier ones changed."""
    calls = []
    for trace, actions in acting:
        if actions and trace.outcome:
            actions.clear()
        elif actions and (call := trace.call(actions[0], tools)):
            calls.append((trace, actions[0], call))
        del actions[:1]
    if tools is not None and calls:
        results = tools.run([call for _, _, call in calls])
        for (trace, action, call), result in zip(calls, results, strict=True):
            trace.receive(action, call.arguments, result)


def parse_actions(token_ids: Sequence[int], tokenizer: Tokenizer) -> tuple[Action, ...]:
    """The calls of a reply that, after its thinking, begins with the call token; else one answer.

    Each call token begins another call. Text that spells the token is none.
    """
    ids = [token for token in token_ids if token != tokenizer.end]
    content = tokenizer.decode(ids)
    if ids and ids[0] == tokenizer.think_open:
        closed = ids.index(tokenizer.think_close) + 1 if tokenizer.think_close in ids else len(ids)
        ids = ids[closed:]
    if not ids or ids[0] != tokenizer.call:
        return (Action("answer", content),)
    starts = [place for place, token in enumerate(ids) if token == tokenizer.call]
    actions = []
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        tool, _, argument = tokenizer.decode(ids[start + 1 : end]).strip().partition(" ")
        actions.append(Action("call", content, tool, argument.strip()))
    return tuple(actions)


@dataclass
class _Live:
    """One trace while it is being made."""

    task: Task
    seed: int
    tokenizer: Tokenizer
    program: Program
    budget: Budget
    segments: dict[Message, tuple[int, ...]]  # token ids of messages that were not sampled; shared by all traces
    outcome: str = ""
    turn: int = 0
    sampled_tokens: int = 0
    nodes: list[Node] = field(default_factory=list)
    history: list[int] = field(default_factory=list)  # the nodes that `state.messages` consists of
    prompt_ids: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))

    def __post_init__(self) -> None:
        self.files: Mapping[str, str] = dict(self.task.hidden.get("files", {}))
        self.notes: Mapping[str, Any] = {}
        for message in self.task.messages:
            self._append(message)

    # -- before the model --

    def prepare(self) -> bool:
        """Ask the program for its view and lay it out as tokens. False where the trace ends here instead."""
        if self.turn >= self.budget.turns:
            self.outcome = "tool_limit"
            return False
        if self._tokens_left() < 1:
            self.outcome = "truncated"
            return False
        try:
            view = tuple(self.program.harness.view(self._state()))
            if not view or not all(isinstance(message, Message) for message in view):
                raise TypeError("view must return at least one Message and nothing else")
            self.parents = self._view_nodes(view)
        except Exception as error:  # noqa: BLE001 - a program may raise anything: recorded as the trace's outcome
            self._program_failed("view", error)
            return False
        body = [token for place in self.parents for token in self._segment(place)]
        self.prompt_ids = (self.tokenizer.bos, *body, self.tokenizer.assistant)
        if len(self.prompt_ids) >= self.budget.context:
            self.outcome = "context_limit"
            return False
        return True

    def request(self, sampling: Sampling) -> Request:
        most = min(self.budget.tokens_per_turn, self._tokens_left(), self.budget.context - len(self.prompt_ids))
        return Request(
            self.prompt_ids,
            SamplingParams(
                max_tokens=most,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                seed=seed_of(self.seed, self.turn),
            ),
        )

    # -- after the model --

    def accept(self, completion: Completion) -> tuple[Action, ...]:
        """Record what was sampled. Its calls; none where the trace ended with it."""
        sampled = ModelCall(
            self.prompt_ids,
            tuple(completion.token_ids),
            tuple(completion.logprobs),
            completion.policy_version,
            completion.finish,
        )
        actions = parse_actions(sampled.token_ids, self.tokenizer)
        view_hash = digest(" ".join(map(str, self.prompt_ids)))
        parents = self.parents if self.parents != tuple(self.history) else self.parents[-1:]
        self.nodes.append(Node(parents, Message("assistant", actions[0].content), sampled, view_hash))
        self.history.append(len(self.nodes) - 1)
        self.turn += 1
        self.sampled_tokens += len(sampled.token_ids)
        if completion.finish == "aborted":
            self.outcome = "aborted"
        elif completion.finish == "length":
            self.outcome = "truncated"
        elif actions[0].kind == "answer":
            self.outcome = "finished"
        return () if self.outcome else actions

    def call(self, action: Action, tools: Tools | None) -> ToolCall | None:
        """The call to run; an invalid one is counted and answered here."""
        try:
            allowed = tuple(self.program.harness.tools(self._state()))
        except Exception as error:  # noqa: BLE001 - as in `prepare`
            self._program_failed("tools", error)
            return None
        try:
            if tools is None or action.tool not in allowed:
                raise InvalidCall(f"no tool {action.tool}")
            arguments = tools.bind(action.tool, action.argument)
        except InvalidCall as refusal:
            self.counts["invalid_calls"] += 1
            self.receive(action, {}, ToolResult(f"{INVALID}{refusal}", self.files, self.notes))
            return None
        self.counts["tool_calls"] += 1
        return ToolCall(action.tool, arguments, self.files, self.notes)

    def receive(self, action: Action, arguments: Mapping[str, Any], result: ToolResult | SandboxFailed) -> None:
        """Record a result, and let the program say what the model is told of it."""
        if isinstance(result, SandboxFailed):
            self.outcome = "sandbox_error"
            return
        use = ToolUse(
            action.tool,
            arguments,
            result.deterministic,
            _changes(self.files, result.files),
            _changes(self.notes, result.notes),
        )
        self.files, self.notes = result.files, result.notes
        self.counts["failed_calls"] += int(result.failed)
        self.counts["backstop_fired"] += int(result.timed_out)
        text = result.text.encode("utf-8", "replace")[: self.budget.result_bytes].decode("utf-8", "ignore")
        raw = Message("tool", text)
        self.nodes.append(Node((len(self.nodes) - 1,), raw, use=use))
        raw_node = len(self.nodes) - 1
        try:
            for message in self.program.harness.observe(self._state(), action, text):
                if not isinstance(message, Message):
                    raise TypeError(f"observe must return messages, not {type(message).__name__}")
                if message == raw:
                    self.history.append(raw_node)
                else:
                    self._append(message, (raw_node,))
        except Exception as error:  # noqa: BLE001 - as in `prepare`
            self._program_failed("observe", error)

    def finish(self) -> Trace:
        facts = {"turns": self.turn, "sampled_tokens": self.sampled_tokens, **self.counts}
        return Trace(
            id=digest(self.task.id, str(self.seed), self.program.version),
            task_id=self.task.id,
            nodes=tuple(self.nodes),
            seed=self.seed,
            harness=self.program.label,
            outcome=self.outcome,
            facts=facts,
        )

    # -- inside --

    def _state(self) -> State:
        return State(
            messages=tuple(self.nodes[place].message for place in self.history),
            turn=self.turn,
            turns_left=self.budget.turns - self.turn,
            tokens_left=self._tokens_left(),
            tool_calls=self.counts["tool_calls"],
            invalid_calls=self.counts["invalid_calls"],
            files=self.files,
            notes=self.notes,
        )

    def _tokens_left(self) -> int:
        return self.budget.tokens - self.sampled_tokens

    def _append(self, message: Message, parents: tuple[int, ...] | None = None) -> None:
        self.nodes.append(Node(parents if parents is not None else tuple(self.history[-1:]), message))
        self.history.append(len(self.nodes) - 1)

    def _view_nodes(self, view: Sequence[Message]) -> tuple[int, ...]:
        """The node of each message of the view: by identity where it was passed on, else a node of its own."""
        by_identity = {id(node.message): place for place, node in enumerate(self.nodes)}
        places = []
        for message in view:
            place = by_identity.get(id(message))
            if place is None:
                composed = (i for i, node in enumerate(self.nodes) if node.call is None and node.message == message)
                place = next(composed, None)
            if place is None:
                self.nodes.append(Node((), message))
                place = len(self.nodes) - 1
            places.append(place)
        return tuple(places)

    def _segment(self, place: int) -> tuple[int, ...]:
        node = self.nodes[place]
        if node.call is not None:
            sampled = node.call.token_ids
            closed = bool(sampled) and sampled[-1] == self.tokenizer.end
            return (self.tokenizer.assistant, *sampled, *(() if closed else (self.tokenizer.end,)))
        if node.message not in self.segments:
            ids = self.tokenizer.render([node.message], generation=False)
            self.segments[node.message] = tuple(ids[1:])
        return self.segments[node.message]

    def _program_failed(self, method: str, error: Exception) -> None:
        self.outcome = "harness_error"
        note = f"harness error in {method} of {self.program.label}: {type(error).__name__}: {error}"
        self.nodes.append(Node(tuple(self.history[-1:]), Message("system", note[:500])))


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """key -> value of what is new or other in `after`; None for what is gone."""
    changed = {key: value for key, value in after.items() if key not in before or before[key] != value}
    return changed | {key: None for key in before if key not in after}
