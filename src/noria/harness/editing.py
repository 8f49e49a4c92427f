"""What programs do with a history and with what tools remember: leave out pruned chunks, begin at the last summary.

Pure functions of messages and notes, made of the trace's very messages where they can be; a program may import them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from noria.types import Message

SUMMARY = "summary: "  # what the result of `summarise` begins with
HEADER = re.compile(r"^\[(\S+#\d+)\]( |$)", re.MULTILINE)


def without_pruned(result: str, pruned: Collection[str]) -> str:
    """A result of the search tools as a program may show it later: of pruned chunks only the id is left."""
    body, line, usage = result.rpartition("\ncontext: ")
    starts = list(HEADER.finditer(body))
    ends = [*(start.start() - 1 for start in starts[1:]), len(body)]
    parts = [
        f"[{start[1]}] (pruned)" if start[1] in pruned else body[start.start() : end]
        for start, end in zip(starts, ends, strict=False)
    ]
    return "\n".join(parts) + line + usage if parts else result


def since_summary(messages: Sequence[Message], notes: Mapping[str, Any]) -> tuple[Message, ...]:
    """The task, the last summary, the messages kept before it, and all that came after; all messages without one."""
    kept = notes.get("summary")
    told = None if kept is None else Message("tool", SUMMARY + kept["text"])
    place = next((i for i in range(len(messages) - 1, -1, -1) if messages[i] == told), None)
    if kept is None or place is None:
        return tuple(messages)
    replies = [i for i, message in enumerate(messages) if message.role == "assistant"]
    task, calling = replies[0], max(i for i in replies if i < place)
    recent = messages[max(task, calling - kept["keep"]) : calling]
    return (*messages[:task], messages[place], *recent, *messages[place + 1 :])
