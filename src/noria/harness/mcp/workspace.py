"""A folder of the user's as a workspace: its files read as values for a call, what the call changed written back.

Tools never see the folder itself. Symbolic links are neither read nor written through: one that leads out of the folder
would lend a tool the rights of this process.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from noria.sandbox import Limits

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class WorkspaceError(ValueError):
    """The folder can't be a workspace; the message says why."""


@dataclass(frozen=True)
class WorkspaceFolder:
    """`folder` with at most what a sandbox of `limits` holds. Without a folder the workspace begins empty."""

    folder: Path
    limits: Limits

    def read(self) -> dict[str, str]:
        """path -> text of every regular file; bytes that are no UTF-8 are kept as surrogates. Raises WorkspaceError."""
        most, total = self.limits.workspace_bytes // 2, 0
        files: dict[str, str] = {}
        for path, descriptor in self._regular_files():
            with os.fdopen(descriptor, "rb") as stream:
                raw = stream.read(self.limits.file_bytes + 1)
            total += len(raw)
            if len(raw) > self.limits.file_bytes:
                raise WorkspaceError(f"{self.folder / path} has more than {self.limits.file_bytes} bytes; {_ADVICE}")
            if total > most:
                raise WorkspaceError(f"the files of {self.folder} have more than {most} bytes; {_ADVICE}")
            files[path] = raw.decode("utf-8", "surrogateescape")
        return dict(sorted(files.items()))

    def write(self, changes: Mapping[str, str | None]) -> None:
        """Put what a call changed into the folder; None deletes. Raises WorkspaceError."""
        for path, text in changes.items():
            parts = PurePosixPath(path).parts
            if not parts or path.startswith("/") or ".." in parts:
                raise WorkspaceError(f"{path!r} is no path in a workspace")
            try:
                self._write(parts, text)
            except OSError as error:
                raise WorkspaceError(f"{self.folder / path} can't be changed: {error.strerror}") from error

    def _write(self, parts: tuple[str, ...], text: str | None) -> None:
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for part in parts[:-1]:
                if text is not None:
                    try:
                        os.mkdir(part, dir_fd=folder)
                    except FileExistsError:
                        pass  # what it is, the next line finds out
                inner = os.open(part, _FOLDER, dir_fd=folder)
                os.close(folder)
                folder = inner
            if text is None:
                os.unlink(parts[-1], dir_fd=folder)
                return
            # A new file in the old one's place: whoever reads sees the one or the other, and no link is followed.
            beside = f".{parts[-1]}.noria"
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            with os.fdopen(os.open(beside, flags, 0o666, dir_fd=folder), "wb") as stream:
                stream.write(text.encode("utf-8", "surrogateescape"))
            os.replace(beside, parts[-1], src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            os.close(folder)

    def _regular_files(self) -> Iterator[tuple[str, int]]:
        """(path, open descriptor) of each regular file; the receiver closes it."""
        try:
            for where, _, names, folder in os.fwalk(self.folder, follow_symlinks=False, onerror=_raise):
                for name in names:
                    if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                        continue
                    path = os.path.relpath(os.path.join(where, name), self.folder)
                    yield path, os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
        except OSError as error:
            raise WorkspaceError(f"{self.folder} can't be read: {error}") from error


def _raise(error: OSError) -> None:
    raise error


_ADVICE = "a workspace is small: name a folder that holds only what the tools are to work on"
