"""A kept trace graded again, replayed from tape, or executed again with real tools.

A replay runs the program again with the recorded samples and tool results and asserts that the program shows the model
the same tokens at every turn. A changed program, tokenizer or budget is found at the first turn where it matters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from noria.data.tokenizer import Tokenizer
from noria.grading import Grader
from noria.harness.program import Program
from noria.harness.rollout import Budget, rollout
from noria.harness.tools import InvalidCall, SandboxFailed, ToolCall, ToolResult, Tools
from noria.harness.tools.toolbox import INVALID
from noria.harness.traces.entry import Recorded
from noria.inference import Completion, Request
from noria.types import ModelCall, Node, Task, ToolUse, Trace

# equal: as recorded. varied: another result, of a call recorded as not deterministic. failed: the sandbox failed.
Verdict = Literal["equal", "varied", "differs", "failed"]


class ReplayMismatch(AssertionError):
    """The replay left the tape; the message names the turn and what differs."""


def regrade(recorded: Recorded, grader: Grader) -> Recorded:
    """The same traces with scores of `grader` as it is now."""
    scores = grader.grade(recorded.tasks, recorded.traces)
    return Recorded(recorded.tasks, recorded.traces, tuple(scores))


def replay(task: Task, trace: Trace, tokenizer: Tokenizer, program: Program, budget: Budget) -> Trace:
    """Run `program` again over the tape of `trace`; the result equals `trace`. Raises ReplayMismatch."""
    return _play(_Tape(trace), task, tokenizer, program, budget)


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
    task: Task, trace: Trace, tokenizer: Tokenizer, program: Program, budget: Budget, tools: Tools
) -> list[Rerun]:
    """Every tool call of `trace` run again by `tools`, in order.

    Each acts on the files and notes that were recorded before it, so that one other result does not change all that
    follow. Raises ReplayMismatch where the program itself leaves the tape.
    """
    tape = _Compared(trace, tools, budget.result_bytes)
    _play(tape, task, tokenizer, program, budget)
    return sorted(tape.reruns, key=lambda rerun: rerun.node)


def _play(tape: _Tape, task: Task, tokenizer: Tokenizer, program: Program, budget: Budget) -> Trace:
    trace = tape.trace
    again = rollout([task], [trace.seed], tape, tokenizer, program, budget=budget, tools=tape)[0]
    if trace.sandbox and not again.sandbox:
        again = replace(again, sandbox=trace.sandbox)  # a tape has none of its own
    if again != trace:
        differing = [name for name, value in vars(again).items() if value != vars(trace)[name]]
        raise ReplayMismatch(f"trace {trace.id} replays with another {', '.join(differing)}")
    return again


class _Tape:
    """The recorded samples and tool results of one trace, played as a sampler and as tools.

    Sub-agents may ask at once, and a reply's calls are bound before they are run. So a call of the model is found by
    its prompt, a tool's result by the tool and its arguments, each the first that was not played yet.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        calls = [node.call for node in trace.nodes if node.call is not None]
        self._calls: list[tuple[int, ModelCall]] = list(enumerate(calls))
        self._results = [(place, node) for place, node in enumerate(trace.nodes) if node.use is not None]
        self._bound: list[tuple[int, Node]] = []

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return [self._completion(tuple(request.prompt_ids)) for request in requests]

    def bind(self, tool: str, argument: str | Mapping[str, Any]) -> Mapping[str, Any]:
        found = self._find(tool, argument)
        if found is None:
            return {}
        self._results.remove(found)
        if found[1].message.content.startswith(INVALID):
            raise InvalidCall(found[1].message.content.removeprefix(INVALID))
        self._bound.append(found)
        return _use(found[1]).arguments

    def run(self, calls: Sequence[ToolCall]) -> list[ToolResult | SandboxFailed]:
        return [self._result(call, self._taken(call)) for call in calls]

    def _completion(self, prompt_ids: tuple[int, ...]) -> Completion:
        played = next((item for item in self._calls if item[1].prompt_ids == prompt_ids), None)
        if played is None:
            if not self._calls:
                total = sum(node.call is not None for node in self.trace.nodes)
                raise ReplayMismatch(f"trace {self.trace.id}: turn {total} was never sampled")
            turn, call = self._calls[0]
            raise ReplayMismatch(
                f"trace {self.trace.id}: the view of turn {turn} has other tokens than the recorded one "
                f"({len(prompt_ids)} against {len(call.prompt_ids)}, first difference at "
                f"{_first_difference(prompt_ids, call)})"
            )
        self._calls.remove(played)
        call = played[1]
        return Completion(call.token_ids, call.logprobs, call.finish, call.policy_version)  # type: ignore[arg-type]

    def _find(self, tool: str, argument: str | Mapping[str, Any]) -> tuple[int, Node] | None:
        of_tool = [item for item in self._results if _use(item[1]).tool == tool]
        # A call that the program did not allow was refused without asking for its arguments: such a result comes last.
        refused = f"{INVALID}no tool {tool}"
        ranked = sorted(of_tool, key=lambda item: item[1].message.content == refused)
        agreeing = (item for item in ranked if _agrees(argument, _use(item[1]).arguments))
        return next(agreeing, ranked[0] if ranked else None)

    def _taken(self, call: ToolCall) -> tuple[int, Node] | None:
        for item in self._bound:
            if _use(item[1]).tool == call.tool and _use(item[1]).arguments == call.arguments:
                self._bound.remove(item)
                return item
        return None

    def _result(self, call: ToolCall, found: tuple[int, Node] | None) -> ToolResult | SandboxFailed:
        if found is None:
            return SandboxFailed("as recorded")
        use = _use(found[1])
        files, notes = _changed(call.files, use.files), _changed(call.notes, use.notes)
        return ToolResult(found[1].message.content, files, notes, use.deterministic)


class _Compared(_Tape):
    """A tape that also runs each call with real tools, and keeps how the results compare."""

    def __init__(self, trace: Trace, tools: Tools, result_bytes: int) -> None:
        super().__init__(trace)
        self.reruns: list[Rerun] = []
        self._tools, self._result_bytes = tools, result_bytes

    def bind(self, tool: str, argument: str | Mapping[str, Any]) -> Mapping[str, Any]:
        found = self._find(tool, argument)
        recorded, now = _bound_by(super().bind, tool, argument), _bound_by(self._tools.bind, tool, argument)
        if found is not None and recorded != now:
            self._keep(found, now if isinstance(now, str) else f"bound to {json.dumps(now)}")
        if isinstance(recorded, str):
            if found is not None and recorded == now:
                self._keep(found, recorded, "equal")
            raise InvalidCall(recorded.removeprefix(INVALID))
        return recorded

    def _result(self, call: ToolCall, found: tuple[int, Node] | None) -> ToolResult | SandboxFailed:
        taped = super()._result(call, found)
        if found is not None and isinstance(taped, ToolResult):
            (now,) = self._tools.run([call])
            if isinstance(now, SandboxFailed):
                self._keep(found, str(now), "failed")
            else:
                text = now.text.encode("utf-8", "replace")[: self._result_bytes].decode("utf-8", "ignore")
                files, notes = _differing(taped.files, now.files), _differing(taped.notes, now.notes)
                same = text == taped.text and not files and not notes
                self._keep(found, text, "equal" if same else None, files, notes)
        return taped

    def _keep(
        self,
        found: tuple[int, Node],
        now: str,
        verdict: Verdict | None = None,
        files: tuple[str, ...] = (),
        notes: tuple[str, ...] = (),
    ) -> None:
        place, node = found
        use = _use(node)
        verdict = verdict or ("differs" if use.deterministic else "varied")
        self.reruns.append(
            Rerun(place, use.tool, use.arguments, verdict, node.message.content, now, files, notes),
        )


def _use(node: Node) -> ToolUse:
    assert node.use is not None
    return node.use


def _agrees(argument: str | Mapping[str, Any], arguments: Mapping[str, Any]) -> bool:
    """Whether `arguments` can be what was bound from `argument`; plain text is compared without its blanks."""
    if not isinstance(argument, str):
        return dict(argument) == dict(arguments)
    words = (value if isinstance(value, str) else json.dumps(value) for value in arguments.values())
    return "".join("".join(words).split()) == "".join(argument.split())


def _bound_by(bind: Any, tool: str, argument: str | Mapping[str, Any]) -> dict[str, Any] | str:
    """The arguments, or the refusal as the text that the model is given."""
    try:
        return dict(bind(tool, argument))
    except InvalidCall as refusal:
        return f"{INVALID}{refusal}"


def _differing(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    names = {**recorded, **now}
    return tuple(sorted(name for name in names if recorded.get(name) != now.get(name)))


def _changed(before: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**before, **changes}.items() if value is not None}


def _first_difference(prompt_ids: Sequence[int], call: ModelCall) -> int:
    pairs = enumerate(zip(prompt_ids, call.prompt_ids, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(prompt_ids), len(call.prompt_ids)))
