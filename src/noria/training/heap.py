"""Memory that a training step frees stays mapped, ready for the next one.

A step allocates its activations anew, and glibc gives large pieces back to the system as they are freed: the next step
has every page mapped and filled with zeros again (350,000 of them a step at 135M parameters and 2,048 tokens).
"""

from __future__ import annotations

import ctypes
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# malloc.h: options of mallopt(3), and what a process that allocates large pieces comes to by itself.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
USUAL_TRIM, USUAL_MMAP, USUAL_MMAP_COUNT = 64 << 20, 32 << 20, 65536

_lock, _within = threading.Lock(), 0


@contextmanager
def kept_mapped() -> Iterator[None]:
    """Within it what the main thread frees stays with the process; after the outermost one, what is free goes back.

    It sets malloc's options for the whole process, those of the environment too. Nothing happens without glibc.
    """
    libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    _enter(libc, 1)
    try:
        yield
    finally:
        _enter(libc, -1)


def _enter(libc: ctypes.CDLL | None, by: int) -> None:
    global _within
    with _lock:
        before, _within = _within, _within + by
        if libc is not None and not before:
            libc.mallopt(MMAP_MAX, 0)
            libc.mallopt(TRIM_THRESHOLD, -1)  # never
        elif libc is not None and not _within:
            libc.mallopt(MMAP_MAX, USUAL_MMAP_COUNT)
            libc.mallopt(MMAP_THRESHOLD, USUAL_MMAP)
            libc.mallopt(TRIM_THRESHOLD, USUAL_TRIM)
            libc.malloc_trim(0)
