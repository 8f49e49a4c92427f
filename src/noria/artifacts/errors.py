"""Errors of the store, each a sentence for the user: what was wrong, where, and what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ADVICE = {
    errno.ENOSPC: "the disk is full. Free space (`noria gc` shows what can go) and run the same command again",
    errno.EDQUOT: "the disk quota is used up. Free space (`noria gc` shows what can go) and run the same command again",
    errno.EACCES: "no permission to write there. Choose another folder with --store, or correct its owner",
    errno.EPERM: "no permission to write there. Choose another folder with --store, or correct its owner",
    errno.EROFS: "the file system is read-only. Choose another folder with --store",
    errno.ENOTDIR: "a part of this path is a file, not a folder. Choose another folder with --store",
    errno.EEXIST: "a file is where a folder should be. Choose another folder with --store",
    errno.ENOLCK: "this file system has no file locks. Put the store on a local disk with --store and use a mirror",
    errno.EIO: "the disk reports an input/output error. Check it before going on",
}


class StoreError(Exception):
    """Something is wrong with the store or with what a step asks of it. Nothing that was published is lost."""


class Unknown(StoreError):
    """A name that means nothing here: of an artifact, alias, step, source, user, run or model. The message says what
    there is."""


class Damaged(StoreError):
    """An artifact is not what was published: a file changed or is missing, or its manifest can't be read."""

    def __init__(self, key: str, path: Path, what: str) -> None:
        super().__init__(
            f"artifact {key} is damaged: {what} (in {path}). Restore the file, or run again with --repair, "
            "which moves the artifact to damaged/ and makes it anew"
        )
        self.key = key


class StepFailed(StoreError):
    """A step raised; the cause is `__cause__`. Its work folder is intact, so a rerun continues from its progress."""

    def __init__(self, step_name: str, what: str) -> None:
        super().__init__(f"step {step_name} failed: {what}")
        self.step_name = step_name


class Interrupted(Exception):
    """The user stopped the run (Ctrl-C). What was finished is published; the step's progress is kept."""

    def __init__(self, step_name: str) -> None:
        super().__init__(f"stopped in step {step_name}; run the same command again to go on from there")
        self.step_name = step_name


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an operating-system error about the store at `path` into a StoreError that says what to do."""
    try:
        yield
    except OSError as error:
        raise StoreError(explain(error, path)) from error


def explain(error: OSError, path: Path) -> str:
    """The sentence for `error`, which befell `path` unless it names a file itself."""
    advice = _ADVICE.get(error.errno or 0, error.strerror or str(error))
    return f"{error.filename or path}: {advice}"
