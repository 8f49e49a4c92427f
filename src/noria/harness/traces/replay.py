"""A kept trace graded again, replayed from tape, or executed again with real tools.

A replay runs the program again with the recorded samples and tool results and asserts that the program shows the model
the same tokens at every turn. A changed program, tokenizer or budget is found at the first turn where it matters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from noria.data.chat_tokenizer import ChatTokenizer
from noria.grading import Grader
from noria.harness.policy import ChatPolicy, policy_of
from noria.harness.program import Program
from noria.harness.rollout import Budget, rollout
from noria.harness.subagents import SubAgents
from noria.harness.tape import ReplayMismatch, Tape
from noria.harness.tools import Described, InvalidCall, SandboxFailed, ToolCall, ToolResult, Tools
from noria.harness.tools.toolbox import INVALID
from noria.harness.traces.entry import Recorded
from noria.inference import Completion, Request
from noria.types import Node, Task, Trace

# equal: as recorded. varied: another result, of a call recorded as not deterministic. failed: the sandbox failed.
Verdict = Literal["equal", "varied", "differs", "failed"]


def regrade(recorded: Recorded, grader: Grader) -> Recorded:
    """The same traces with scores of `grader` as it is now."""
    scores = grader.grade(recorded.tasks, recorded.traces)
    return Recorded(recorded.tasks, recorded.traces, tuple(scores))


def replay(
    task: Task,
    trace: Trace,
    tokenizer: ChatTokenizer | None,
    program: Program,
    budget: Budget,
    *,
    policy: ChatPolicy | None = None,
    tools: Sequence[Described] = (),
    subagents: SubAgents | None = None,
) -> Trace:
    """Run `program` again over the tape of `trace`; the result equals `trace`. Raises ReplayMismatch.

    `tokenizer` is the one that the trace was sampled with; a trace of another kind of policy takes that `policy`, which
    is not asked anything. `tools` need be given for chat models, whose prompts tell of them, and `subagents` as in the
    rollout.
    """
    tape = Tape(trace, policy or policy_of(_NoSampler(), tokenizer), tools)
    return _play(tape, task, program, budget, subagents)


@dataclass(frozen=True)
class Rerun:
    """One tool call run again. `now` is the result's text; `files` and `notes` name those that came out otherwise."""

    node: int
    tool: str
    arguments: Mapping[str, Any]
    verdict: Verdict
    recorded: str
    now: str
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def reexecute(
    task: Task,
    trace: Trace,
    tokenizer: ChatTokenizer | None,
    program: Program,
    budget: Budget,
    tools: Tools,
    *,
    policy: ChatPolicy | None = None,
    subagents: SubAgents | None = None,
) -> list[Rerun]:
    """Every tool call of `trace` run again by `tools`, in order; the rest as in `replay`.

    Each acts on the files and notes that were recorded before it, so that one other result does not change all that
    follow. Raises ReplayMismatch where the program itself leaves the tape.
    """
    tape = _Compared(trace, policy or policy_of(_NoSampler(), tokenizer), tools, budget.result_bytes)
    _play(tape, task, program, budget, subagents)
    return sorted(tape.reruns, key=lambda rerun: rerun.node)


def _play(tape: Tape, task: Task, program: Program, budget: Budget, subagents: SubAgents | None) -> Trace:
    trace = tape.trace
    alone = replace(subagents, policy=None) if subagents else None  # they are on the tape too
    again = rollout([task], [trace.seed], tape, None, program, budget=budget, tools=tape, subagents=alone)[0]
    if again != trace:
        differing = [name for name, value in vars(again).items() if value != vars(trace)[name]]
        raise ReplayMismatch(f"trace {trace.id} replays with another {', '.join(differing)}")
    return again


class _NoSampler:
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        raise ReplayMismatch("a replay samples nothing")


class _Compared(Tape):
    """A tape that also runs each call with real tools, and keeps how the results compare."""

    def __init__(self, trace: Trace, policy: ChatPolicy, tools: Tools, result_bytes: int) -> None:
        super().__init__(trace, policy, tuple(tools.described.values()))
        self.reruns: list[Rerun] = []
        self._tools, self._result_bytes = tools, result_bytes

    def bind_of(self, agent: str, tool: str, argument: str | Mapping[str, Any]) -> Mapping[str, Any]:
        node = self.coming(agent)
        now = _bound_by(self._tools, tool, argument)
        try:
            recorded = super().bind_of(agent, tool, argument)
        except InvalidCall as refusal:
            if node is not None:
                same = now == f"{INVALID}{refusal}"
                self._keep(node, now if isinstance(now, str) else f"bound to {json.dumps(now)}", same)
            raise
        if node is not None and dict(recorded) != now:
            self._keep(node, now if isinstance(now, str) else f"bound to {json.dumps(now)}", False)
        return recorded

    def _result(self, call: ToolCall) -> ToolResult | SandboxFailed:
        node = self.bound(call)
        taped = super()._result(call)
        if node is not None and isinstance(taped, ToolResult):
            (now,) = self._tools.run([call])
            if isinstance(now, SandboxFailed):
                self._keep(node, str(now), None)
            else:
                text = now.text.encode("utf-8", "replace")[: self._result_bytes].decode("utf-8", "ignore")
                files, notes = _differing(taped.files, now.files), _differing(taped.notes, now.notes)
                self._keep(node, text, text == taped.text and not files and not notes, files, notes)
        return taped

    def _keep(
        self, node: Node, now: str, same: bool | None, files: tuple[str, ...] = (), notes: tuple[str, ...] = ()
    ) -> None:
        """`same` is None where the sandbox failed."""
        assert node.use is not None
        use = node.use
        other: Verdict = "differs" if use.deterministic else "varied"
        verdict: Verdict = "failed" if same is None else "equal" if same else other
        place = next(place for place, found in enumerate(self.trace.nodes) if found is node)
        self.reruns.append(Rerun(place, use.tool, use.arguments, verdict, node.message.content, now, files, notes))


def _bound_by(tools: Tools, tool: str, argument: str | Mapping[str, Any]) -> dict[str, Any] | str:
    """The arguments, or the refusal as the text that the model is given."""
    try:
        return dict(tools.bind(tool, argument))
    except InvalidCall as refusal:
        return f"{INVALID}{refusal}"


def _differing(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    names = {**recorded, **now}
    return tuple(sorted(name for name in names if recorded.get(name) != now.get(name)))
