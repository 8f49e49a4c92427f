"""File locks between processes. The kernel frees them when their holder dies, so a kill leaves none behind."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from noria.artifacts.errors import StoreError, explained

_held: set[int] = set()


class Busy(StoreError):
    """The lock is held by another process and the caller did not want to wait."""


@contextmanager
def hold(
    path: Path, *, shared: bool = False, wait: bool = True, on_wait: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold the lock file `path`. `on_wait` is told the holder once if it must wait. Raises Busy when not to wait."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _held.add(descriptor)
    try:
        mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        if not _try(descriptor, mode, path):
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            if not wait:
                raise Busy(f"{path.name} is in use by {holder}. Wait for it to end, then try again")
            if on_wait:
                on_wait(holder)
            with explained(path):
                fcntl.flock(descriptor, mode)
        if not shared:
            with explained(path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()}".encode(), 0)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _try(descriptor: int, mode: int, path: Path) -> bool:
    with explained(path):
        try:
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            raise
    return True


def _release_in_child() -> None:
    # A forked worker that outlives a killed parent must not keep the parent's lock.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)
