"""Pure functions over chunks, on several processes, results in order: the number of workers can't change them."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
WATCH_SECONDS = 1.0


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_order(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int | None = None
) -> Iterator[Result]:
    """`function` of each item. With one worker or one item it runs here; else in processes that end with this one."""
    workers = min(workers or cores(), len(items))
    if workers <= 1:
        yield from map(function, items)
        return
    # Spawned, not forked: the caller may hold threads (a progress display, a database), which a fork would break.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_end_with_parent, initargs=(os.getpid(),)) as pool:
        try:
            yield from pool.map(function, items)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent(parent: int) -> None:
    """A worker whose parent was killed would wait forever for work."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each worker uses one core
