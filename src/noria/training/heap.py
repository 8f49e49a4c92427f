"""Memory that a training step frees stays mapped, ready for the next one: on Linux a tenth of a step may go into pages.

A step allocates its activations anew, and glibc gives pieces of 32 MB and more back to the system at once: the next
step has every page mapped and filled with zeros again (350,000 of them a step at 135M parameters and 2,048 tokens).
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# malloc.h: options of mallopt(3), and what they come to by themselves in a process that allocates large pieces.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
USUAL_TRIM, USUAL_MMAP, USUAL_MAX = 64 << 20, 32 << 20, 65536


@contextmanager
def kept_mapped() -> Iterator[None]:
    """Within it freed memory stays with the process; after it, what is free goes back. Without glibc: as ever."""
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    try:
        libc.mallopt(MMAP_MAX, 0)
        libc.mallopt(TRIM_THRESHOLD, -1)  # never
        yield
    finally:
        libc.mallopt(MMAP_MAX, USUAL_MAX)
        libc.mallopt(MMAP_THRESHOLD, USUAL_MMAP)
        libc.mallopt(TRIM_THRESHOLD, USUAL_TRIM)
        libc.malloc_trim(0)
