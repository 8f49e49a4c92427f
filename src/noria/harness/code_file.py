"""A Python file that a user wrote, a harness program or an environment: found, and on which line what is at fault."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path


class CodeFileError(ValueError):
    """The file can't be used, or what it holds failed; the message names the file, the line where there is one, and
    what is wrong."""


def read_code(
    given: Path | str, what: str, folder: Path, names: Sequence[str], error: type[CodeFileError]
) -> tuple[Path, str]:
    """(path, source) of a .py file, or of the one in noria's own `folder` that `names` has. Raises `error`."""
    path = Path(given)
    if path.suffix != ".py":
        if str(given) not in names:
            raise error(f"no {what} {str(given)!r}: give a .py file, or one of {', '.join(names)}")
        path = folder / f"{given}.py"
    try:
        return path, path.read_text(encoding="utf-8")
    except OSError as failed:
        raise error(f"{path}: {failed.strerror}") from failed
    except UnicodeDecodeError as failed:
        raise error(f"{path}: is no text in UTF-8: {failed}") from failed


def error_line(error: BaseException, filename: str) -> int | None:
    """The last line of `filename` that `error` went through, or that a SyntaxError of it names; None where there is
    none. `filename` is spelled as the file was compiled."""
    if isinstance(error, SyntaxError) and error.filename == filename:
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno for frame in reversed(frames) if frame.filename == filename), None)


def place_of(error: BaseException, *functions: object) -> str:
    """file:line of the first of the functions' files that the error went through, else of where it was raised."""
    for function in functions:
        own = getattr(getattr(function, "__code__", None), "co_filename", "")
        if line := error_line(error, own):
            return f"{own}:{line}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno}"
