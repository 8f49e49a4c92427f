"""Bits per byte of a model on ordinary text: what post-training on a narrow set of tasks may cost is seen here first.

The text is the documentation that comes with Python (`pydoc_data.topics`), so that it is there without a network; its
digest is part of what was measured. N windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from noria.types import digest

WINDOW_TOKENS = 128


class Encoder(Protocol):
    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


def guard_text(most_bytes: int) -> str:
    """The first `most_bytes` of Python's own topic pages, by name."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name].strip() for name in sorted(topics))
    return text.encode("utf-8")[:most_bytes].decode("utf-8", "ignore")


def text_digest(most_bytes: int) -> str:
    return digest(guard_text(most_bytes))


def bits_per_byte(
    score: Callable[[Sequence[Sequence[int]]], Sequence[Sequence[float]]], encoder: Encoder, text: str
) -> list[float]:
    """Bits per byte of each window of `text`: -sum log2 p(token) / bytes, the window's first token given, not scored.

    Windows are cut in the text, at line ends, so that they hold the same bytes whatever the tokenizer. `score` gives
    the log-probability of each token after the first.
    """
    windows = _windows(text)
    ids = [encoder.encode(window) for window in windows]
    found = []
    for window, tokens, logprobs in zip(windows, ids, score(ids), strict=True):
        size = len(window.encode("utf-8")) - len(encoder.decode(tokens[:1]).encode("utf-8"))
        found.append(-sum(logprobs) / math.log(2.0) / size)
    return found


def _windows(text: str, size: int = WINDOW_TOKENS * 4) -> list[str]:
    """Pieces of about `size` characters that end at a line's end."""
    pieces, piece = [], ""
    for line in text.splitlines(keepends=True):
        piece += line
        if len(piece) >= size:
            pieces.append(piece)
            piece = ""
    return pieces or [text]
