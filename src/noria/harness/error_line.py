"""Which line of a user's file an error comes from."""

from __future__ import annotations

import traceback


def error_line(error: BaseException, filename: str) -> int | None:
    """The last line of `filename` that `error` went through, or that a SyntaxError of it names; None where there is
    none. `filename` is spelled as the file was compiled."""
    if isinstance(error, SyntaxError) and error.filename == filename:
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno for frame in reversed(frames) if frame.filename == filename), None)
