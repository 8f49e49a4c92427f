"""Maths: the final answer compared with the gold one, exactly.

Three paths. A bare integer against an integer (nearly every reply in RL) is compared at once. Any other statement of a
number is read as an exact fraction. Any other gold answer (x^2 + 1, \\sqrt{2}, an interval) goes to math-verify in a
worker process.
"""

from __future__ import annotations

import json
import queue
import re
import subprocess
import sys
import threading
from pathlib import Path

from noria.grading import final_answer, maths_worker
from noria.grading.final_answer import commitment, number, numbers_in
from noria.grading.grader import Failure, TextGrader, Verdict, one_by_one, version_of
from noria.types import Task

START_SECONDS = 60.0  # importing sympy on a busy machine
ANSWER_SECONDS = 5.0
_INTEGER = re.compile(r"-?[0-9]{1,100}")
# 9**9**9 or a thousand nested roots are not answers; they are refused before they cost a timeout.
_TOWER = re.compile(r"(?:\^|\*\*)\s*\{?\s*[^\s+\-]*(?:\^|\*\*)|(?:\^|\*\*)\s*\{?\s*-?\d{4,}|\d{41,}|!{2,}")


def maths_grader() -> TextGrader:
    """The exact grader: 1 where the reply commits to the right answer, else 0."""
    version = version_of(sys.modules[__name__], final_answer, maths_worker, packages=("math-verify",))
    return TextGrader("maths", version, one_by_one(judge_maths))


def maths_weak_grader() -> TextGrader:
    """A training grader with one named weakness: the right integer *anywhere* in the answer counts.

    Its exploit is to list numbers. It exists to show the gap between a training grader and an exact held-out one.
    """
    version = version_of(sys.modules[__name__], final_answer, data="weak")
    return TextGrader("maths_weak", version, one_by_one(judge_maths_weakly))


def judge_maths(task: Task, answer: str) -> Verdict | Failure:
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(task.answer):
        equal = int(answer) == int(task.answer)
        return Verdict(float(equal), f"stated {answer}, expected {task.answer}", {"parsed": 1.0})
    gold = number(task.answer)
    if gold is None:
        return _judge_expression(task, answer)
    stated = number(commitment(answer))
    parsed = 0.0 if stated is None else 1.0
    if stated is None:
        return Verdict(0.0, f"states no single number: {answer[:80]!r}", {"parsed": parsed})
    return Verdict(float(stated == gold), f"stated {stated}, expected {gold}", {"parsed": parsed})


def judge_maths_weakly(task: Task, answer: str) -> Verdict | Failure:
    gold = number(task.answer)
    if gold is None or gold.denominator != 1:
        return Failure("invalid_task", f"maths_weak judges integers, and the answer of {task.id} is {task.answer!r}")
    found = [int(run) for run in numbers_in(answer) if run.isdigit() and len(run) <= final_answer.MAX_DIGITS]
    return Verdict(float(abs(gold) in found), f"{len(found)} integers in the answer", {"integers": float(len(found))})


def _judge_expression(task: Task, answer: str) -> Verdict | Failure:
    if not task.answer.strip():
        return Failure("invalid_task", f"task {task.id} has no gold answer")
    stated = commitment(answer)
    if stated is None or not stated:
        return Verdict(0.0, "states no single answer", {"parsed": 0.0})
    if _TOWER.search(stated):
        return Verdict(0.0, f"refused as too large to evaluate: {stated[:80]!r}", {"parsed": 0.0})
    outcome = compare(task.answer, stated)
    if isinstance(outcome, Failure):
        return outcome
    return Verdict(float(outcome), f"math-verify compared {stated[:80]!r} with {task.answer!r}", {"parsed": 1.0})


def compare(gold: str, answer: str, seconds: float = ANSWER_SECONDS) -> bool | Failure:
    """Whether math-verify finds `answer` equal to `gold`; a Failure where it crashed or took longer than `seconds`."""
    with _LOCK:
        try:
            worker = _Worker.shared()
            reply = worker.ask({"gold": gold, "answer": answer}, seconds)
        except TimeoutError:
            _Worker.discard()
            return Failure("timeout", f"math-verify took longer than {seconds:g} s for {answer[:80]!r}")
        except (OSError, EOFError) as error:
            _Worker.discard()
            return Failure("crash", f"math-verify stopped on {answer[:80]!r}: {error}")
    if not reply["gold_parsed"]:
        return Failure("invalid_task", f"math-verify can't read the gold answer {gold!r}")
    return bool(reply["equal"])


_LOCK = threading.Lock()


class _Worker:
    """The running worker process. It ends by itself when this process closes its input."""

    _running: _Worker | None = None

    def __init__(self) -> None:
        command = [sys.executable, "-I", str(Path(maths_worker.__file__))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._line(START_SECONDS)

    @classmethod
    def shared(cls) -> _Worker:
        if cls._running is None:
            cls._running = cls()
        return cls._running

    @classmethod
    def discard(cls) -> None:
        if cls._running is not None:
            cls._running.process.kill()
            cls._running.process.wait()
            cls._running = None

    def ask(self, request: dict[str, str], seconds: float) -> dict[str, bool]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self._line(seconds))

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def _line(self, seconds: float) -> str:
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None
        if not line:
            raise EOFError("the worker process ended")
        return line
