"""The sandbox: warm executions a second and the cost of a start, against what gives less protection or none.

    python -m benchmarks.sandbox [--inspect PYTHON] [--repetitions 7] [--json] [--quick]

Peers: a plain `python -I -S -c SOURCE` that isn't confined at all, and with --inspect Inspect's local sandbox (no
isolation either: a temporary folder), from an interpreter that has inspect_ai; one that is named and fails ends the
benchmark. Every execution is another source text, so nothing is shared between them; each contestant's values are
checked. One at a time, and as many at once as there are cores. All take turns, each round from another one on.

Exits with 1 where warm executions reach less than half the rate of the plain subprocess.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.report import Row, paired_row, show
from noria.sandbox import Candidate, Limits, Sandbox
from noria.sandbox.bubblewrap import interpreter

LEAST_RATIO = 0.5
SOURCE = "def f(n):\n    return sum(i * i for i in range(n)) + {mark}"
ARGUMENT = 100
PEER = Path(__file__).with_name("sandbox_inspect.py")

Turn = Callable[[Sequence[int]], float]  # marks -> seconds; each mark is one execution


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inspect", metavar="PYTHON", help="Python with inspect_ai")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--executions", type=int, default=200, help="in each turn")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="fewer executions and rounds")
    options = parser.parse_args()
    rounds, count = (3, 30) if options.quick else (options.repetitions, options.executions)
    cores = len(os.sched_getaffinity(0))
    rows: list[Row] = []
    for at_once in sorted({1, cores}):
        with ExitStack() as stack:
            rows += rate_rows(stack, options.inspect, at_once, rounds, count)
    rows += start_rows(rounds)
    show("sandbox", rows, as_json=options.json, quick=options.quick, load=os.getloadavg())
    plain = [row.ratio or 0.0 for row in rows if row.case.startswith("functions") and row.peer.startswith("plain")]
    return 0 if min(plain) >= LEAST_RATIO else 1


def rate_rows(stack: ExitStack, inspect: str | None, at_once: int, rounds: int, count: int) -> list[Row]:
    """Executions a second of Python functions and of a small program."""
    box = stack.enter_context(Sandbox(Limits(), workers=at_once))
    pool = stack.enter_context(ThreadPoolExecutor(at_once))
    plain = f"plain python {sys.version.split()[0]}"
    functions: dict[str, Turn] = {"ours": functions_turn(box), plain: python_turn(pool)}
    programs: dict[str, Turn] = {"ours": commands_turn(box), "plain program": program_turn(pool)}
    if inspect:
        peer = stack.enter_context(InspectPeer(inspect, at_once))
        functions[peer.name] = lambda marks: peer.run([python_command(mark) for mark in marks], marks, value)
        programs[peer.name] = lambda marks: peer.run([["echo", str(mark)] for mark in marks], marks, lambda mark: mark)
    rows: list[Row] = []
    for case, turns in (("functions", functions), ("programs", programs)):
        rates = {name: [count / seconds for seconds in found] for name, found in take(turns, rounds, count).items()}
        for name in list(turns)[1:]:
            label = f"{case}, {at_once} at once, {box.label}"
            rows.append(paired_row(label, name, rates["ours"], rates[name], "a second", lower_is_better=False))
    return rows


def start_rows(rounds: int) -> list[Row]:
    """Seconds from nothing to the first value: of a sandbox, and of a plain interpreter."""
    turns: dict[str, Turn] = {"ours": start_turn, "plain python": lambda marks: python_turn_of(marks)}
    found = take(turns, rounds, 1)
    return [
        paired_row(
            "start and one function", "plain python", found["ours"], found["plain python"], "s", lower_is_better=True
        )
    ]


def take(turns: dict[str, Turn], rounds: int, count: int) -> dict[str, list[float]]:
    """Seconds of every turn, after one that warms up; each round begins with another contestant."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    names = list(turns)
    for name in names:
        turns[name](range(min(count, 4)))
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = 1000 * (turn + 1)
            seconds[name].append(turns[name](range(start, start + count)))
    return seconds


def value(mark: int) -> int:
    return sum(i * i for i in range(ARGUMENT)) + mark


def python_command(mark: int) -> list[str]:
    return [*interpreter(), "-c", f"{SOURCE.format(mark=mark)}\nprint(f({ARGUMENT}))"]


def functions_turn(box: Sandbox) -> Turn:
    def turn(marks: Sequence[int]) -> float:
        candidates = [Candidate(SOURCE.format(mark=mark), "f", [[ARGUMENT]]) for mark in marks]
        started = time.perf_counter()
        outcomes = box.run_functions(candidates)
        seconds = time.perf_counter() - started
        agree([outcome.values for outcome in outcomes], [[value(mark)] for mark in marks])
        return seconds

    return turn


def commands_turn(box: Sandbox) -> Turn:
    def turn(marks: Sequence[int]) -> float:
        started = time.perf_counter()
        outcomes = box.run_commands([(["echo", str(mark)], {}) for mark in marks])
        seconds = time.perf_counter() - started
        agree([outcome.output for outcome in outcomes], [f"{mark}\n" for mark in marks])
        return seconds

    return turn


def python_turn(pool: ThreadPoolExecutor) -> Turn:
    return lambda marks: processes(pool, [python_command(mark) for mark in marks], [value(mark) for mark in marks])


def program_turn(pool: ThreadPoolExecutor) -> Turn:
    return lambda marks: processes(pool, [["echo", str(mark)] for mark in marks], marks)


def processes(pool: ThreadPoolExecutor, commands: Sequence[list[str]], expected: Sequence[int]) -> float:
    def run(command: list[str]) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout

    started = time.perf_counter()
    outputs = list(pool.map(run, commands))
    seconds = time.perf_counter() - started
    agree(outputs, [f"{each}\n" for each in expected])
    return seconds


def start_turn(marks: Sequence[int]) -> float:
    started = time.perf_counter()
    with Sandbox(Limits(), workers=1) as box:
        outcomes = box.run_functions([Candidate(SOURCE.format(mark=mark), "f", [[ARGUMENT]]) for mark in marks])
        seconds = time.perf_counter() - started
    agree([outcome.values for outcome in outcomes], [[value(mark)] for mark in marks])
    return seconds


def python_turn_of(marks: Sequence[int]) -> float:
    with ThreadPoolExecutor(1) as pool:
        return python_turn(pool)(marks)


def agree(found: Sequence[object], expected: Sequence[object]) -> None:
    if list(found) != list(expected):
        raise SystemExit(f"a contestant gave other values than expected: {list(found)[:3]} for {list(expected)[:3]}")


class InspectPeer:
    """Inspect's local sandbox in its own process and environment."""

    def __init__(self, python: str, at_once: int) -> None:
        self._at_once = at_once
        self._process = subprocess.Popen(
            [python, str(PEER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.name = str(self._read()["name"])

    def __enter__(self) -> InspectPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=20)  # closes its input, at whose end it leaves

    def run(self, commands: Sequence[list[str]], marks: Sequence[int], expected: Callable[[int], int]) -> float:
        assert self._process.stdin is not None
        print(json.dumps({"commands": commands, "at_once": self._at_once}), file=self._process.stdin, flush=True)
        answer = self._read()
        agree(answer["outputs"], [f"{expected(mark)}\n" for mark in marks])
        return float(answer["seconds"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"Inspect failed; is inspect_ai installed for it?\n{self._process.communicate()[1][-2000:]}")


if __name__ == "__main__":
    sys.exit(main())
