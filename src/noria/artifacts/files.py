"""Writing that survives a power cut: a file or folder exists whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from noria.artifacts.errors import StoreError


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text`; after a crash it holds the old text or the new, never a part."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file or a folder's list of names to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(Path(parent, name))
        sync(Path(parent))


def list_files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """(path relative to `folder`, stat) of each file, sorted. Links and devices have no place in an artifact."""
    found = []
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            if (path := Path(parent, name)).is_symlink():
                raise StoreError(f"{path} is a link; an artifact holds files only: copy what it points to")
        found += [Path(parent, name) for name in names]
    for path in sorted(found):
        if not path.is_file():
            raise StoreError(f"{path} is neither file nor folder; an artifact holds files only")
        yield path.relative_to(folder).as_posix(), path.stat()


def remove_tree(folder: Path, trash: Path) -> None:
    """Remove a folder so that a crash half-way leaves nothing that looks whole: rename into `trash`, then delete."""
    if not folder.exists():
        return
    trash.mkdir(parents=True, exist_ok=True)
    doomed = trash / f"{folder.name}.{os.getpid()}.{os.urandom(4).hex()}"
    folder.rename(doomed)
    shutil.rmtree(doomed)


def sweep(trash: Path) -> None:
    """Delete what a killed process had renamed into `trash` and not yet deleted; a living one finishes its own."""
    for doomed in trash.iterdir() if trash.is_dir() else ():
        process = doomed.name.split(".")[-2]
        if not Path("/proc", process).exists():
            shutil.rmtree(doomed, ignore_errors=True)  # another run may sweep the same; gc reports what stays


def tree_size(folder: Path) -> int:
    """Bytes of all files below `folder`; files that vanish meanwhile count nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
    return total
