"""Memory that a training step frees stays mapped, ready for the next one.

A step allocates its activations anew, and glibc gives large pieces back to the system as they are freed: the next step
has every page mapped and filled with zeros again (350,000 of them a step at 135M parameters and 2,048 tokens). Kept,
they serve a step of the same shape; steps of many shapes leave holes that fit none, more with every step.
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


class Heap:
    """glibc's; with another library nothing happens."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
        self._shape: tuple[int, ...] | None = None

    def expect(self, shape: tuple[int, ...]) -> None:
        """A step of this shape comes: if the one before had another, nothing is kept from here on."""
        if self._shape not in (None, shape):
            self._give_back()
        self._shape = shape

    def enter(self, by: int) -> None:
        global _within
        with _lock:
            before, _within = _within, _within + by
            if self._libc is not None and not before:
                self._libc.mallopt(MMAP_MAX, 0)
                self._libc.mallopt(TRIM_THRESHOLD, -1)  # never
            elif not _within:
                self._give_back()

    def _give_back(self) -> None:
        if self._libc is not None:
            self._libc.mallopt(MMAP_MAX, USUAL_MMAP_COUNT)
            self._libc.mallopt(MMAP_THRESHOLD, USUAL_MMAP)
            self._libc.mallopt(TRIM_THRESHOLD, USUAL_TRIM)
            self._libc.malloc_trim(0)


@contextmanager
def kept_mapped() -> Iterator[Heap]:
    """Within it what the main thread frees stays with the process, as long as steps are of one shape (`Heap.expect`);
    after the outermost one, what is free goes back.

    It sets malloc's options for the whole process, those of the environment too.
    """
    heap = Heap()
    heap.enter(1)
    try:
        yield heap
    finally:
        heap.enter(-1)
