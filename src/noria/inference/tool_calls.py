"""Tool calls in the form that each model was trained on: how tools are shown to it, and how its calls are read.

| form   | models                                | a call as the model writes it                              |
|--------|---------------------------------------|------------------------------------------------------------|
| native | this project's tokenizer              | the call token, then `NAME ARGUMENT`                       |
| tags   | templates that write `<tool_call>`    | JSON of name and arguments, in `<tool_call>` tags          |
| bare   | templates that ask for `"parameters"` | the reply is a JSON object of name and parameters (Llama 3) |

A template that names no tools has no form, and requests with tools are then refused. What does not read as a call of
one of the request's tools stays text: nothing that a model wrote is lost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from noria.data.chat_tokenizer import ChatTokenizer
from noria.data.imported_tokenizer import ImportedTokenizer
from noria.data.tokenizer import CALL, Tokenizer
from noria.inference.reply_text import overlap
from noria.types import THINK_CLOSE, THINK_OPEN, Message, Role

OPEN_TAG, CLOSE_TAG = "<tool_call>", "</tool_call>"
PYTHON_TAG = "<|python_tag|>"


@dataclass(frozen=True)
class ToolSpec:
    """A function that the model may call; `parameters` is the JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False

    def to_json(self) -> dict[str, Any]:
        told = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": told}


@dataclass(frozen=True)
class FunctionCall:
    """One call; `arguments` is a JSON object as text."""

    name: str
    arguments: str


@dataclass(frozen=True)
class ChatMessage:
    """A message of a request, its calls apart from its text."""

    role: Role
    content: str
    calls: tuple[FunctionCall, ...] = ()


@dataclass(frozen=True)
class Structure:
    """What the sampled text must match: a JSON schema, any JSON object, or a regular expression."""

    kind: Literal["json_schema", "json_object", "regex"]
    value: str = ""


@dataclass(frozen=True)
class Forced:
    """A call that must come: `opening` is put before the reply, the rest must match `structure`."""

    opening: str
    opening_ids: tuple[int, ...]
    structure: Structure


class CallForm(Protocol):
    """How one model is told of tools, and how it calls them."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Text from one of these on may be a call."""
        ...

    @property
    def at_start(self) -> bool:
        """Whether a marker counts only at the start of the reply (after its thinking)."""
        ...

    def refuse(self, tools: Sequence[ToolSpec]) -> str:
        """Why this model can't have these tools; empty if it can."""
        ...

    def prompt(self, messages: Sequence[ChatMessage], tools: Sequence[ToolSpec]) -> list[int]: ...

    def plain(self, message: ChatMessage) -> Message:
        """The message with its calls as text, for the log."""
        ...

    def read(self, text: str, token_ids: Sequence[int], tools: Mapping[str, ToolSpec]) -> list[FunctionCall]:
        """The calls of a reply's end, from its marker on; empty where it is none. `token_ids` are the whole reply's."""
        ...

    def force(self, tools: Sequence[ToolSpec]) -> Forced: ...


def call_form(tokenizer: ChatTokenizer) -> CallForm | None:
    """The form of a model's calls; None where its template knows no tools."""
    if isinstance(tokenizer, Tokenizer):
        return NativeCalls(tokenizer)
    assert isinstance(tokenizer, ImportedTokenizer)
    if not tokenizer.knows_tools:
        return None
    if OPEN_TAG in tokenizer.template:
        return TaggedCalls(tokenizer)
    return BareCalls(tokenizer) if '"parameters"' in tokenizer.template else None


@dataclass
class CallReader:
    """Lets out the text of a reply as it comes, and holds back what may be a call until the end decides."""

    form: CallForm
    tools: Mapping[str, ToolSpec]
    held: str = ""
    _text: str = ""
    _holding: bool = False
    _answering: bool = False  # text that is no call has begun, in a form whose calls come first

    def feed(self, text: str) -> str:
        """What of `text` is no call."""
        self.held += text
        if self._holding:
            return ""
        place = self._marker()
        self._holding = place is not None
        keep = len(self.held) - place if place is not None else self._possible()
        out, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        self._text += out
        return out

    def finish(self, token_ids: Sequence[int]) -> tuple[str, list[FunctionCall]]:
        """(text that was held back and is none, the calls)."""
        calls = self.form.read(self.held, token_ids, self.tools) if self._holding else []
        return ("" if calls else self.held), calls

    def _marker(self) -> int | None:
        """Where a call may begin in what is held."""
        if not self.form.at_start:
            return min((place for marker in self.form.markers if (place := self.held.find(marker)) >= 0), default=None)
        if self._answering:
            return None
        reply = self._text + self.held
        begins = _answer_begins(reply)
        if begins is None:
            return None
        if reply.startswith(self.form.markers, begins):
            return begins - len(self._text)
        self._answering = not any(marker.startswith(reply[begins:]) for marker in self.form.markers)
        return None

    def _possible(self) -> int:
        """How much of the end of what is held may become a marker."""
        return 0 if self._answering else max(overlap(self.held, marker) for marker in self.form.markers)


def _answer_begins(reply: str) -> int | None:
    """Where the first character of a reply's answer is, its thinking passed over; None while that can't be said."""
    if not reply.strip() or THINK_OPEN.startswith(reply):
        return None
    behind = 0
    if reply.startswith(THINK_OPEN):
        close = reply.find(THINK_CLOSE)
        if close < 0:
            return None
        behind = close + len(THINK_CLOSE)
    answer = reply[behind:].lstrip()
    return len(reply) - len(answer) if answer else None


@dataclass(frozen=True)
class NativeCalls:
    """The call token, then `NAME ARGUMENT`. Such models know their tools from training: none are listed."""

    tokenizer: Tokenizer
    markers = (CALL,)
    at_start = True

    def refuse(self, tools: Sequence[ToolSpec]) -> str:
        for tool in tools:
            properties = tool.parameters.get("properties", {})
            if len(properties) > 1 or any(_type(schema) != "string" for schema in properties.values()):
                return f"calls of this model carry at most one argument, a string; {tool.name!r} takes something else"
        return ""

    def prompt(self, messages: Sequence[ChatMessage], tools: Sequence[ToolSpec]) -> list[int]:
        return self.tokenizer.render([self.plain(message) for message in messages])

    def plain(self, message: ChatMessage) -> Message:
        calls = "".join(f"{CALL}{call.name} {_only_value(call.arguments)}".rstrip() for call in message.calls[:1])
        return Message(message.role, message.content + calls)

    def read(self, text: str, token_ids: Sequence[int], tools: Mapping[str, ToolSpec]) -> list[FunctionCall]:
        if self.tokenizer.call not in token_ids:  # letters that spell the token are text
            return []
        name, _, argument = text.removeprefix(CALL).strip().partition(" ")
        if name not in tools:
            return []
        properties = list(tools[name].parameters.get("properties", {}))
        if bool(properties) != bool(argument.strip()):
            return []
        arguments = dict(zip(properties, [argument.strip()], strict=False))
        return [FunctionCall(name, json.dumps(arguments, ensure_ascii=False))]

    def force(self, tools: Sequence[ToolSpec]) -> Forced:
        ways = [tool.name + (r" [^\s].*" if tool.parameters.get("properties") else "") for tool in tools]
        return Forced(CALL, (self.tokenizer.call,), Structure("regex", f"({'|'.join(ways)})"))


@dataclass(frozen=True)
class _JsonCalls:
    """What the forms of imported models share: their template shows the tools, and any tool can be called."""

    tokenizer: ImportedTokenizer

    def refuse(self, tools: Sequence[ToolSpec]) -> str:
        return ""

    def prompt(self, messages: Sequence[ChatMessage], tools: Sequence[ToolSpec]) -> list[int]:
        return self.tokenizer.render_dicts(_dicts(messages), [tool.to_json() for tool in tools])

    def plain(self, message: ChatMessage) -> Message:
        return _plain(message)


@dataclass(frozen=True)
class TaggedCalls(_JsonCalls):
    """Hermes's form, also Qwen's: JSON between tags, as many as the model likes."""

    markers = (OPEN_TAG,)
    at_start = False

    def read(self, text: str, token_ids: Sequence[int], tools: Mapping[str, ToolSpec]) -> list[FunctionCall]:
        calls = []
        for part in text.split(OPEN_TAG)[1:]:
            body, _, behind = part.partition(CLOSE_TAG)
            call = _json_call(body, ("arguments", "parameters"), tools)
            if call is None or behind.strip():
                return []
            calls.append(call)
        return calls

    def force(self, tools: Sequence[ToolSpec]) -> Forced:
        opening = OPEN_TAG + "\n"
        return Forced(opening, tuple(self.tokenizer.encode_marked(opening)), _call_schema(tools, "arguments"))


@dataclass(frozen=True)
class BareCalls(_JsonCalls):
    """Llama 3's form: the whole reply is one JSON object."""

    markers = ("{", PYTHON_TAG)
    at_start = True

    def read(self, text: str, token_ids: Sequence[int], tools: Mapping[str, ToolSpec]) -> list[FunctionCall]:
        call = _json_call(text.strip().removeprefix(PYTHON_TAG), ("parameters", "arguments"), tools)
        return [] if call is None else [call]

    def force(self, tools: Sequence[ToolSpec]) -> Forced:
        return Forced("", (), _call_schema(tools, "parameters"))


def _json_call(text: str, keys: Sequence[str], tools: Mapping[str, ToolSpec]) -> FunctionCall | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("name") not in tools:
        return None
    arguments = next((found[key] for key in keys if key in found), None)
    if not isinstance(arguments, dict):
        return None
    return FunctionCall(found["name"], json.dumps(arguments, ensure_ascii=False))


def _call_schema(tools: Sequence[ToolSpec], key: str) -> Structure:
    ways = [
        {
            "type": "object",
            "properties": {"name": {"const": tool.name}, key: dict(tool.parameters) or {"type": "object"}},
            "required": ["name", key],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    return Structure("json_schema", json.dumps(ways[0] if len(ways) == 1 else {"anyOf": ways}))


def _dicts(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Messages as Hugging Face templates expect them: arguments are objects, not text."""
    told = []
    for message in messages:
        calls = [
            {"type": "function", "function": {"name": call.name, "arguments": json.loads(call.arguments)}}
            for call in message.calls
        ]
        told.append(
            {"role": message.role, "content": message.content} | ({"tool_calls": calls} if calls else {}),
        )
    return told


def _plain(message: ChatMessage) -> Message:
    calls = [
        json.dumps({"name": call.name, "arguments": json.loads(call.arguments)}, ensure_ascii=False)
        for call in message.calls
    ]
    return Message(message.role, "\n".join([*([message.content] if message.content else []), *calls]))


def _only_value(arguments: str) -> str:
    return str(next(iter(json.loads(arguments).values()), ""))


def _type(schema: Any) -> Any:
    return schema.get("type", "string") if isinstance(schema, dict) else "string"
