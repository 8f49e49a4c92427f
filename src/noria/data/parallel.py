"""Pure functions over chunks, on several processes, results in order: the number of workers can't change them."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
WATCH_SECONDS = 1.0


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Processes that map functions over chunks; with one worker everything runs in this process."""

    def __init__(self, count: int) -> None:
        # Spawned, not forked: the caller may hold threads (a progress display, a database), which a fork would break.
        context = multiprocessing.get_context("spawn")
        start: dict[str, Any] = {"initializer": _end_with_parent, "initargs": (os.getpid(),)}
        self._pool = ProcessPoolExecutor(count, context, **start) if count > 1 else None

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`function` of each item, in the order of `items`."""
        return map(function, items) if self._pool is None else self._pool.map(function, items)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent(parent: int) -> None:
    """A worker whose parent was killed would wait forever for work."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each worker uses one core
