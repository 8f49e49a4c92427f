"""A Python file that a user wrote, a harness program or an environment: what is at fault in it, and on which line."""

from __future__ import annotations

import traceback


class CodeFileError(ValueError):
    """The file can't be used, or what it holds failed; the message names the file, the line where there is one, and
    what is wrong."""


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
