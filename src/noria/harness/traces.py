"""Traces on disk, one JSON object a line; graded again, and replayed from tape.

A replay runs the program again with the recorded samples and tool results and asserts that the program shows the model
the same tokens at every turn. A changed program, tokenizer or budget is found at the first turn where it matters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from noria.data.tokenizer import Tokenizer
from noria.grading import Grader
from noria.harness.program import Program
from noria.harness.rollout import Budget, rollout
from noria.harness.tools import InvalidCall, SandboxFailed, ToolCall, ToolResult
from noria.harness.tools.toolbox import INVALID
from noria.inference import Completion, Request
from noria.types import GraderRef, ModelCall, Score, Task, Trace, task_from_json, task_to_json

T = TypeVar("T")


@dataclass(frozen=True)
class Recorded:
    """A rolled-out set of tasks: one trace and one score a task, in the same order."""

    tasks: tuple[Task, ...]
    traces: tuple[Trace, ...]
    scores: tuple[Score, ...]

    def __post_init__(self) -> None:
        if not len(self.tasks) == len(self.traces) == len(self.scores):
            raise ValueError(f"{len(self.tasks)} tasks, {len(self.traces)} traces, {len(self.scores)} scores")


class TraceFileError(ValueError):
    """A line of a trace file can't be read; the message names file and line."""


class ReplayMismatch(AssertionError):
    """The replay left the tape; the message names the turn and what differs."""


def save(folder: Path, recorded: Recorded) -> None:
    """tasks.jsonl, traces.jsonl and scores.jsonl in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "tasks.jsonl", map(task_to_json, recorded.tasks))
    _write(folder / "traces.jsonl", (trace.to_json() for trace in recorded.traces))
    _write(folder / "scores.jsonl", (json.dumps(asdict(score), ensure_ascii=False) for score in recorded.scores))


def load(folder: Path) -> Recorded:
    """What `save` wrote. Raises TraceFileError, FileNotFoundError."""
    return Recorded(
        tuple(_read(folder / "tasks.jsonl", task_from_json)),
        tuple(_read(folder / "traces.jsonl", Trace.from_json)),
        tuple(_read(folder / "scores.jsonl", _score)),
    )


def regrade(recorded: Recorded, grader: Grader) -> Recorded:
    """The same traces with scores of `grader` as it is now."""
    scores = grader.grade(recorded.tasks, recorded.traces)
    return Recorded(recorded.tasks, recorded.traces, tuple(scores))


def replay(task: Task, trace: Trace, tokenizer: Tokenizer, program: Program, budget: Budget) -> Trace:
    """Run `program` again over the tape of `trace`; the result equals `trace`. Raises ReplayMismatch."""
    tape = _Tape(trace)
    again = rollout([task], [trace.seed], tape, tokenizer, program, budget=budget, tools=tape)[0]
    if again != trace:
        differing = [name for name, value in vars(again).items() if value != vars(trace)[name]]
        raise ReplayMismatch(f"trace {trace.id} replays with another {', '.join(differing)}")
    return again


class _Tape:
    """The recorded samples and tool results of one trace, played as a sampler and as tools."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._calls = iter([(node.call, node.view_hash) for node in trace.nodes if node.call is not None])
        self._results = [node for node in trace.nodes if node.use is not None]
        self._turn = -1

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        (request,) = requests
        call, _ = next(self._calls, (None, ""))
        self._turn += 1
        if call is None:
            raise ReplayMismatch(f"trace {self.trace.id}: turn {self._turn} was never sampled")
        if tuple(request.prompt_ids) != call.prompt_ids:
            raise ReplayMismatch(
                f"trace {self.trace.id}: the view of turn {self._turn} has other tokens than the recorded one "
                f"({len(request.prompt_ids)} against {len(call.prompt_ids)}, first difference at "
                f"{_first_difference(request.prompt_ids, call)})"
            )
        return [Completion(call.token_ids, call.logprobs, call.finish, call.policy_version)]  # type: ignore[arg-type]

    def bind(self, tool: str, argument: str | Mapping[str, Any]) -> Mapping[str, Any]:
        if self._results and self._results[0].message.content.startswith(INVALID):
            raise InvalidCall(self._results.pop(0).message.content.removeprefix(INVALID))
        return self._results[0].use.arguments if self._results and self._results[0].use else {}

    def run(self, calls: Sequence[ToolCall]) -> list[ToolResult | SandboxFailed]:
        (call,) = calls
        if not self._results:
            return [SandboxFailed("as recorded")]
        node = self._results.pop(0)
        assert node.use is not None
        files, notes = _changed(call.files, node.use.files), _changed(call.notes, node.use.notes)
        return [ToolResult(node.message.content, files, notes, node.use.deterministic)]


def _changed(before: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**before, **changes}.items() if value is not None}


def _first_difference(prompt_ids: Sequence[int], call: ModelCall) -> int:
    pairs = enumerate(zip(prompt_ids, call.prompt_ids, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(prompt_ids), len(call.prompt_ids)))


def _write(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(line + "\n" for line in lines)


def _read(path: Path, parse: Callable[[str], T]) -> Iterable[T]:
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            try:
                yield parse(line)
            except (ValueError, KeyError, TypeError) as error:
                raise TraceFileError(f"{path}:{number}: {type(error).__name__}: {error}") from error


def _score(line: str) -> Score:
    raw = json.loads(line)
    raw["grader"] = GraderRef(**raw["grader"])
    return Score(**raw)
