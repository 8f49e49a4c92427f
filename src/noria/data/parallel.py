"""Pure functions over chunks, on several processes, results in order: the number of workers can't change them.

Workers are plain child processes that speak pickles over pipes. They import only what the function needs, never the
caller's main module (so a script or notebook needs no `if __name__` guard), share no state with its threads, and end
when the pipe closes, however the parent ended.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerError(RuntimeError):
    """A worker ended without an answer, e.g. because the system ran out of memory."""


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Processes that map functions over chunks; with a count of one everything runs in this process."""

    def __init__(self, count: int) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._free: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(count) if count > 1 else None
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TOKENIZERS_PARALLELISM": "false"}
        for _ in range(count if count > 1 else 0):
            command = [sys.executable, "-c", "from noria.data.parallel import serve; serve()"]
            worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            self._processes.append(worker)
            self._free.put(worker)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`function` of each item, in the order of `items`. What it raises is raised here."""
        if self._threads is None:
            return map(function, items)
        return self._threads.map(lambda item: self._ask(function, item), items)

    def _ask(self, function: Callable[[Item], Result], item: Item) -> Result:
        worker = self._free.get()
        try:
            assert worker.stdin and worker.stdout
            pickle.dump((function, item), worker.stdin, pickle.HIGHEST_PROTOCOL)
            worker.stdin.flush()
            result, error = pickle.load(worker.stdout)
        except (EOFError, BrokenPipeError) as gone:
            raise WorkerError(f"a worker ended with code {worker.wait()}; too little memory?") from gone
        finally:
            self._free.put(worker)
        if error is not None:
            raise error
        return result

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type | None, *rest: object) -> None:
        if kind is not None:
            for worker in self._processes:
                worker.kill()  # also ends the threads that wait for its answer
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._processes:
            assert worker.stdin and worker.stdout
            with suppress(BrokenPipeError):  # what a dead worker never read can't be flushed
                worker.stdin.close()
            worker.stdout.close()
            worker.wait()


def serve() -> None:
    """A worker's life: read (function, item), answer (result, error), until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the answers
    while True:
        try:
            function, item = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        answer: tuple[Any, BaseException | None]
        try:
            answer = (function(item), None)
        except Exception as error:  # noqa: BLE001  it is raised again in the parent
            answer = (None, error)
        pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()
