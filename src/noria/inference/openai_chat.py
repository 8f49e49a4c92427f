"""The chat-completions wire format, as pure functions: a JSON body to a ChatRequest, sampled pieces to JSON replies."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from noria.inference.openai_schema import (
    MAX_TOP_LOGPROBS,
    SAMPLING_FIELDS,
    Sampling,
    checked_body,
    invalid,
    kind_of,
    read_boolean,
    read_integer,
    read_sampling,
    read_stream,
    read_user,
    shown,
    usage,
)
from noria.inference.serving import ServedChoice, TokenLogprob
from noria.inference.structured_request import STRUCTURE_FIELDS, read_structure
from noria.inference.tool_calls import CallReader, ChatMessage, FunctionCall, Structure, ToolSpec

MAX_TOOLS = 128
KNOWN = SAMPLING_FIELDS | STRUCTURE_FIELDS | {
    *("model", "messages", "stream", "stream_options", "max_completion_tokens", "logprobs", "top_logprobs"),
    *("user", "safety_identifier", "metadata", "tools", "tool_choice", "parallel_tool_calls"),
}  # fmt: skip
CHAT_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "functions": ([], None),
    "function_call": ("none", None),
    "modalities": (["text"], None),
    "service_tier": ("auto", "default", None),
    "store": (False, None),
}
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
# What clients send back with an assistant's message as they got it.
MESSAGE_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("refusal", "audio", "function_call", "name"), (None,)),
    "annotations": ([], None),
    "reasoning_content": ("", None),
}
FINISH = {"stop": "stop", "length": "length", "aborted": "stop"}


@dataclass(frozen=True)
class ChatRequest:
    """A valid request. `tools` are those that may be called; `forced` that one of them must be."""

    model: str
    messages: tuple[ChatMessage, ...]
    sampling: Sampling
    stream: bool = False
    include_usage: bool = False
    user: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    tools: tuple[ToolSpec, ...] = ()
    forced: bool = False
    parallel_calls: bool = True
    structure: Structure | None = None


def parse_chat_request(raw: Any) -> ChatRequest:
    """Checks a decoded JSON body. Raises ApiError(400) with the parameter at fault."""
    body = checked_body(raw, KNOWN, CHAT_NEUTRAL)
    max_tokens_name = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    stream, include_usage = read_stream(body)
    tools, forced = _tools(body)
    structure = read_structure(body)
    if structure and tools:
        raise invalid("structured output and tools exclude each other; ask for one of them.", "response_format")
    return ChatRequest(
        model=body["model"],
        messages=_messages(body.get("messages")),
        sampling=read_sampling(body, max_tokens_name, _logprobs(body)),
        stream=stream,
        include_usage=include_usage,
        user=read_user(body),
        metadata=_metadata(body.get("metadata")),
        tools=tools,
        forced=forced,
        parallel_calls=body.get("parallel_tool_calls") is None or read_boolean(body, "parallel_tool_calls"),
        structure=structure,
    )


def _logprobs(body: Mapping[str, Any]) -> int | None:
    wanted, top = read_boolean(body, "logprobs"), read_integer(body, "top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top and not wanted:
        raise invalid("'top_logprobs' needs 'logprobs': true.", "top_logprobs")
    return (top or 0) if wanted else None


def _metadata(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(entry, str) for entry in value.values()) or len(value) > 16:
        raise invalid("'metadata' must be an object of at most 16 strings.", "metadata", "invalid_type")
    return value


# -- tools --


def _tools(body: Mapping[str, Any]) -> tuple[tuple[ToolSpec, ...], bool]:
    """(the tools that may be called, whether one must be)."""
    given = body.get("tools")
    if given is not None and (not isinstance(given, list) or len(given) > MAX_TOOLS):
        raise invalid(f"'tools' must be an array of at most {MAX_TOOLS} functions.", "tools", "invalid_type")
    tools = tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(given or []))
    if len({tool.name for tool in tools}) < len(tools):
        raise invalid("two of 'tools' have the same name.", "tools")
    choice = body.get("tool_choice")
    if choice is None:
        return tools, False
    if not tools:
        if choice == "none":
            return (), False
        raise invalid("'tool_choice' is only allowed when 'tools' are given.", "tool_choice")
    if choice in ("none", "auto", "required"):
        return (() if choice == "none" else tools), choice == "required"
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    named = tuple(tool for tool in tools if tool.name == name)
    if not named:
        raise invalid(
            f"'tool_choice' is {shown(choice)}; allowed: none, auto, required, or a function of 'tools'.", "tool_choice"
        )
    return named, True


def _tool(value: Any, where: str) -> ToolSpec:
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    if not isinstance(function, dict):
        raise invalid(f"'{where}' must be an object of type function.", where)
    for name in sorted(set(function) - {"name", "description", "parameters", "strict"}):
        raise invalid(f"'{where}.function' has an unknown field {shown(name)}.", where, "unknown_parameter")
    name = function.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
        message = f"'{where}.function.name' must be 1 to 64 letters, digits, '_', '.' or '-'; got {shown(name)}."
        raise invalid(message, f"{where}.function.name")
    description, parameters = function.get("description"), function.get("parameters")
    description, parameters = description if description is not None else "", {} if parameters is None else parameters
    if not isinstance(description, str):
        raise invalid(f"'{where}.function.description' must be a string.", f"{where}.function.description")
    properties = parameters.get("properties", {}) if isinstance(parameters, dict) else None
    if not isinstance(properties, dict):
        message = f"'{where}.function.parameters' must be the JSON schema of an object."
        raise invalid(message, f"{where}.function.parameters", "invalid_type")
    return ToolSpec(name, description, parameters, read_boolean(function, "strict"))


# -- messages --


def _messages(value: Any) -> tuple[ChatMessage, ...]:
    if not isinstance(value, list) or not value:
        raise invalid("'messages' must be a non-empty array.", "messages")
    return tuple(_message(message, f"messages[{index}]") for index, message in enumerate(value))


def _message(value: Any, where: str) -> ChatMessage:
    if not isinstance(value, dict):
        raise invalid(f"'{where}' must be an object, not {kind_of(value)}.", where, "invalid_type")
    role = value.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(f"'{where}.role' is {shown(role)}; allowed: {', '.join(ROLES)}.", f"{where}.role")
    own = {"assistant": {"tool_calls"}, "tool": {"tool_call_id", "name"}}.get(role, set())
    for name in sorted(set(value) - {"role", "content"} - own):
        if value[name] not in MESSAGE_NEUTRAL.get(name, (None,) if name == "tool_calls" else ()):
            message = f"'{where}' has {shown(name)}, which this server does not take there."
            raise invalid(message, f"{where}.{name[:64]}", "unsupported_parameter")
    if role == "tool" and not isinstance(value.get("tool_call_id"), str):
        raise invalid(f"'{where}.tool_call_id' must say which call this answers.", f"{where}.tool_call_id")
    calls = _calls(value.get("tool_calls"), f"{where}.tool_calls") if role == "assistant" else ()
    content = value.get("content")
    if isinstance(content, list):
        content = _joined(content, f"{where}.content")
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise invalid(
            f"'{where}.content' must be a string, not {kind_of(content)}.", f"{where}.content", "invalid_type"
        )
    return ChatMessage(ROLES[role], content, calls)  # type: ignore[arg-type]


def _calls(value: Any, where: str) -> tuple[FunctionCall, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise invalid(f"'{where}' must be an array.", where, "invalid_type")
    calls = []
    for index, call in enumerate(value):
        function = call.get("function") if isinstance(call, dict) and call.get("type") == "function" else None
        name = function.get("name") if isinstance(function, dict) else None
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if not isinstance(name, str) or not isinstance(arguments, str):
            raise invalid(f"'{where}[{index}]' must be a call of type function.", f"{where}[{index}]")
        try:
            fits = isinstance(json.loads(arguments), dict)
        except (ValueError, RecursionError):
            fits = False
        if not fits:
            at = f"{where}[{index}].function.arguments"
            raise invalid(f"'{at}' must be a JSON object as text.", at)
        calls.append(FunctionCall(name, arguments))
    return tuple(calls)


def _joined(parts: Sequence[Any], where: str) -> str:
    for index, part in enumerate(parts):
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise invalid(f"'{where}[{index}]' must be a part of type text.", f"{where}[{index}]")
    return "".join(part["text"] for part in parts)


# -- replies --


class ChatReply:
    """Shapes one request's sampled pieces as chat completions: chunks of a stream, or one body."""

    prefix = "chatcmpl-"

    def __init__(self, ask: ChatRequest, head: Mapping[str, Any], reader: Callable[[], CallReader] | None) -> None:
        self._ask, self._head = ask, head
        self._readers = [reader() for _ in range(ask.sampling.n)] if reader else None
        self._tokens: list[list[TokenLogprob]] = [[] for _ in range(ask.sampling.n)]
        self._texts = [""] * ask.sampling.n

    def opening(self) -> list[dict[str, Any]]:
        return [
            self._chunk(index, {"role": "assistant", "content": ""}) for index in range(self._ask.sampling.n)
        ]  # fmt: skip

    def piece(self, index: int, text: str, tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        """The chunks for one more piece of choice `index`."""
        out = self._readers[index].feed(text) if self._readers else text
        self._texts[index] += out
        self._tokens[index] += tokens
        wants = self._ask.sampling.logprobs is not None
        if not out and not (wants and tokens):
            return []
        return [self._chunk(index, {"content": out}, tokens if wants else None)]

    def ending(self, choices: Sequence[ServedChoice]) -> list[dict[str, Any]]:
        chunks = []
        for index, choice in enumerate(choices):
            rest, calls = self._calls(index, choice)
            if rest:
                chunks.append(self._chunk(index, {"content": rest}))
            if calls:
                numbered = [{"index": place, **call} for place, call in enumerate(calls)]
                chunks.append(self._chunk(index, {"tool_calls": numbered}))
            chunks.append(self._chunk(index, {}, finish="tool_calls" if calls else FINISH[choice.finish]))
        return chunks

    def usage(self, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
        """The closing chunk that carries only the usage."""
        used = usage(prompt_tokens, completion_tokens)
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": used}

    def whole(self, choices: Sequence[ServedChoice], prompt_tokens: int) -> dict[str, Any]:
        """The body of a reply that is not streamed; every piece has been through `piece`."""
        made = []
        for index, choice in enumerate(choices):
            rest, calls = self._calls(index, choice)
            text = self._texts[index] + rest
            message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
            if calls:
                message |= {"content": text.strip() or None, "tool_calls": calls}
            wanted = self._tokens[index] if self._ask.sampling.logprobs is not None else None
            finish = "tool_calls" if calls else FINISH[choice.finish]
            made.append(
                {"index": index, "message": message, "logprobs": _logprobs_json(wanted), "finish_reason": finish}
            )
        used = usage(prompt_tokens, sum(len(choice.token_ids) for choice in choices))
        return {**self._head, "object": "chat.completion", "choices": made, "usage": used}

    def _calls(self, index: int, choice: ServedChoice) -> tuple[str, list[dict[str, Any]]]:
        """(text that was held back and is no call, the calls as JSON)."""
        if not self._readers:
            return "", []
        rest, calls = self._readers[index].finish(choice.token_ids)
        if not self._ask.parallel_calls:
            calls = calls[:1]
        named = [
            {
                "id": f"call_{secrets.token_hex(12)}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in calls
        ]
        return rest, named

    def _chunk(
        self,
        index: int,
        delta: Mapping[str, Any],
        tokens: Sequence[TokenLogprob] | None = None,
        finish: str | None = None,
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": _logprobs_json(tokens), "finish_reason": finish}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}


def _logprobs_json(tokens: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    return None if tokens is None else {"content": [token.to_json() for token in tokens], "refusal": None}
