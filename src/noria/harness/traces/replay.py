"""A kept trace graded again, replayed from tape (`harness/tape.py`), or executed again with real tools.

A replay runs the program again with the recorded samples and tool results and asserts that the program shows the model
the same tokens at every turn. A changed program, tokenizer or budget is found at the first turn where it matters.
"""

from __future__ import annotations

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
from noria.harness.tools import Described, SandboxFailed, ToolCall, ToolResult, Tools
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
    rollout, with their policy where they had one of their own; it is not asked anything either.
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
    """Every tool call of `trace` that was run, run again by `tools`; in the order of the trace.

    Each acts on the files and notes that were recorded before it, so that one other result does not change all that
    follow. Raises ReplayMismatch where the program itself leaves the tape.
    """
    tape = _Compared(trace, policy or policy_of(_NoSampler(), tokenizer), tools, budget.result_bytes)
    _play(tape, task, program, budget, subagents)
    return sorted(tape.reruns, key=lambda rerun: rerun.node)


def _play(tape: Tape, task: Task, program: Program, budget: Budget, subagents: SubAgents | None) -> Trace:
    try:
        return _played(tape, task, program, budget, subagents)
    except ReplayMismatch as mismatch:
        made = tape.trace.harness
        if program.label == made:
            raise
        raise ReplayMismatch(f"{mismatch}: it was made with the program {made}, this is {program.label}") from mismatch


def _played(tape: Tape, task: Task, program: Program, budget: Budget, subagents: SubAgents | None) -> Trace:
    trace = tape.trace
    told = [node for node in trace.nodes if node.message.role == "tool"]  # none where the sandbox failed at once
    if told and not any(node.use for node in trace.nodes):
        raise ReplayMismatch(f"trace {trace.id} was kept without its tool calls: it can be graded, but not replayed")
    given = subagents
    if given is not None and given.policy is not None:
        given = replace(given, policy=tape.laid_out_by(given.policy))
    again = rollout([task], [trace.seed], tape, None, program, budget=budget, tools=tape, subagents=given)[0]
    if again != trace:
        differing = [name for name, value in vars(again).items() if value != vars(trace)[name]]
        raise ReplayMismatch(f"trace {trace.id} replays with another {', '.join(differing)}")
    return again


class _Compared(Tape):
    """A tape that also runs each call with real tools, and keeps how the results compare."""

    def __init__(self, trace: Trace, policy: ChatPolicy, tools: Tools, result_bytes: int) -> None:
        super().__init__(trace, policy, list(tools.described.values()))
        self.reruns: list[Rerun] = []
        self._tools, self._result_bytes = tools, result_bytes
        self._places = {id(node): place for place, node in enumerate(trace.nodes)}

    def _result(self, call: ToolCall) -> ToolResult | SandboxFailed:
        _, node = self._bound.get(id(call.arguments), (None, None))
        taped = super()._result(call)
        if node is not None and isinstance(taped, ToolResult):
            self.reruns.append(self._compared(call, node, taped))
        return taped

    def _compared(self, call: ToolCall, node: Node, taped: ToolResult) -> Rerun:
        place = self._places[id(node)]
        (now,) = self._tools.run([call])
        if isinstance(now, SandboxFailed):
            return Rerun(place, call.tool, call.arguments, "failed", taped.text, str(now))
        text = now.text.encode("utf-8", "replace")[: self._result_bytes].decode("utf-8", "ignore")
        files, notes = _differing(taped.files, now.files), _differing(taped.notes, now.notes)
        verdict: Verdict = "equal"
        if text != taped.text or files or notes:
            verdict = "differs" if taped.deterministic else "varied"
        return Rerun(place, call.tool, call.arguments, verdict, taped.text, text, files, notes)


def _differing(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    names = {**recorded, **now}
    return tuple(sorted(name for name in names if recorded.get(name) != now.get(name)))


class _NoSampler:
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        raise ReplayMismatch("a replay samples nothing")
