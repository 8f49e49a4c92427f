"""Memory and retrieval: what is remembered and what was found stand before the task; the history itself is kept short.

The opening message lists what tools remember (`notes["memory"]`, key by key) and which chunks a search has shown and
which of them were pruned (`notes["search"]`). Of the history the last turns are shown; what came before must have been
remembered to be known. So the prompt stays bounded however long the task is.
"""

import json

from noria.types import Message

LAST_TURNS = 8  # replies that are shown with their results
MEMORY_CHARACTERS = 2000
RULES = (
    "Only your last turns are shown to you. Search for what you need, and remember at once what you will need later. "
    "Answer when you know enough."
)


class Harness:
    def view(self, state):
        first = next((i for i, message in enumerate(state.messages) if message.role == "assistant"), None)
        task, rest = state.messages[:first], () if first is None else state.messages[first:]
        replies = [i for i, message in enumerate(rest) if message.role == "assistant"]
        start = replies[-LAST_TURNS] if len(replies) > LAST_TURNS else 0
        told = [RULES, *remembered(state.notes.get("memory")), *found(state.notes.get("search"))]
        if start:
            told.append(f"({start} earlier messages are not shown)")
        opening = "\n".join(told)
        if task[0].role == "system":
            return (Message("system", f"{task[0].content}\n\n{opening}"), *task[1:], *rest[start:])
        return (Message("system", opening), *task, *rest[start:])

    def tools(self, state):
        return state.available

    def observe(self, state, action, result):
        return (Message("tool", result),)


def remembered(memory):
    """One line a key, in order, as far as they fit."""
    if not memory:
        return ["You remember nothing yet."]
    items = sorted(memory.items()) if isinstance(memory, dict) else enumerate(memory)
    lines = [f"{key}: {value if isinstance(value, str) else json.dumps(value, sort_keys=True)}" for key, value in items]
    text = "\n".join(lines)
    return ["You remember:", text if len(text) <= MEMORY_CHARACTERS else f"{text[:MEMORY_CHARACTERS]} ..."]


def found(search):
    """What of the corpus was shown and is still of use."""
    seen = (search or {}).get("seen", ())
    pruned = set((search or {}).get("pruned", ()))
    kept = [name for name in seen if name not in pruned]
    return [f"Chunks found, {len(kept)} of {len(seen)} kept: {' '.join(kept)}"] if seen else []
