"""Traces on disk, one JSON object a line; graded again, and replayed from tape.

A replay runs the program again with the recorded samples and tool results and asserts that the program shows the model
the same tokens at every turn. A changed program, tokenizer or budget is found at the first turn where it matters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from noria.data.chat_tokenizer import ChatTokenizer
from noria.grading import Grader
from noria.harness.policy import ChatPolicy, policy_of
from noria.harness.program import Program
from noria.harness.rollout import Budget, rollout
from noria.harness.subagents import SubAgents
from noria.harness.tape import ReplayMismatch, Tape
from noria.harness.tools import Described
from noria.inference import Completion, Request
from noria.types import GraderRef, Score, Task, Trace, task_from_json, task_to_json

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
    again = rollout(
        [task],
        [trace.seed],
        tape,
        None,
        program,
        budget=budget,
        tools=tape,
        subagents=replace(subagents, policy=None) if subagents else None,
    )[0]
    if again != trace:
        differing = [name for name, value in vars(again).items() if value != vars(trace)[name]]
        raise ReplayMismatch(f"trace {trace.id} replays with another {', '.join(differing)}")
    return again


class _NoSampler:
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        raise ReplayMismatch("a replay samples nothing")


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
