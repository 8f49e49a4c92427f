"""Worked examples as pretraining text: the question, the reasoning, the answer, in plain lines."""

from __future__ import annotations

import json
from collections.abc import Iterable

from noria.types import split_thinking


def worked_example(question: str, reply: str) -> str:
    """Plain text of a question and its worked reply; the thinking loses its tags (they belong to the chat format)."""
    thinking, answer = split_thinking(reply)
    return "\n".join(part for part in (question.strip(), thinking, answer) if part)


def json_lines(pairs: Iterable[tuple[str, str]]) -> bytes:
    """(question, reply) pairs as JSON lines with a `text` each."""
    rows = ({"text": worked_example(question, reply)} for question, reply in pairs)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8")
