"""The calls of a reply, in the form in which its model writes them. A call that can't be read is still a call: it is
counted as invalid and answered, never taken for an answer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from noria.data.tokenizer import Tokenizer
from noria.harness.program import Action
from noria.inference.tool_calls import CLOSE_TAG, OPEN_TAG, PYTHON_TAG
from noria.types import THINK_CLOSE, THINK_OPEN

SURROGATES = re.compile("[\ud800-\udfff]")


def parse_actions(token_ids: Sequence[int], tokenizer: Tokenizer) -> tuple[Action, ...]:
    """The calls of a reply that, after its thinking, begins with the call token; else one answer.

    Each call token begins another call. Text that spells the token is none.
    """
    ids = [token for token in token_ids if token != tokenizer.end]
    content = tokenizer.decode(ids)
    if ids and ids[0] == tokenizer.think_open:
        closed = ids.index(tokenizer.think_close) + 1 if tokenizer.think_close in ids else len(ids)
        ids = ids[closed:]
    if not ids or ids[0] != tokenizer.call:
        return (Action("answer", content),)
    starts = [place for place, token in enumerate(ids) if token == tokenizer.call]
    actions = []
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        tool, _, argument = tokenizer.decode(ids[start + 1 : end]).strip().partition(" ")
        actions.append(Action("call", content, tool, argument.strip()))
    return tuple(actions)


def read_actions(text: str, bare: bool = False) -> tuple[Action, ...]:
    """The calls of a chat model's reply: JSON between `<tool_call>` tags, or (`bare`) a reply that is one JSON object.

    What comes before a tagged call is kept in the content and is no answer. Tags within the thinking are no calls.
    """
    behind = text
    if text.startswith(THINK_OPEN):
        behind = text.partition(THINK_CLOSE)[2]
    if bare:
        body = behind.strip().removeprefix(PYTHON_TAG)
        found = _object(body)
        looks_like_one = found is not None and "name" in found and ("parameters" in found or "arguments" in found)
        if looks_like_one or re.match(r'\{\s*"name"\s*:', body):
            return (call_of(text, body),)
        return (Action("answer", text),)
    if OPEN_TAG not in behind:
        return (Action("answer", text),)
    return tuple(call_of(text, part.partition(CLOSE_TAG)[0]) for part in behind.split(OPEN_TAG)[1:])


def call_of(content: str, body: str) -> Action:
    """The call that `body`, a JSON object of name and arguments, asks for."""
    found = _object(body)
    if found is None:
        return Action("call", content, malformed="the call is not a JSON object of name and arguments")
    arguments = found.get("arguments", found.get("parameters", {}))
    return named_call(content, found.get("name"), arguments)


def named_call(content: str, name: Any, arguments: Any) -> Action:
    """A call of the tool `name`; `arguments` is a mapping, or one as JSON text."""
    if not isinstance(name, str) or not name:
        return Action("call", content, malformed="the call has no name")
    if isinstance(arguments, str):
        arguments = _object(arguments or "{}")
    if not isinstance(arguments, Mapping):
        return Action("call", content, clean(name), malformed=f"the arguments of {clean(name)} are not a JSON object")
    return Action("call", content, clean(name), clean(dict(arguments)))


def clean(value: Any) -> Any:
    """`value` with U+FFFD for lone surrogates, which JSON can spell and no text can hold."""
    if isinstance(value, str):
        return SURROGATES.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {clean(key): clean(item) for key, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, list) else value


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
