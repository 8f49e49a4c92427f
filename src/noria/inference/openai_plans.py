"""From a request's JSON to what is to be sampled: prompts rendered, tools shown, what can't fit refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from noria.data.chat_tokenizer import ChatTokenizer
from noria.data.imported_tokenizer import ChatTemplateError
from noria.inference.engine import Engine
from noria.inference.openai_chat import ChatReply, ChatRequest, parse_chat_request
from noria.inference.openai_completions import CompletionReply, CompletionRequest, parse_completion_request
from noria.inference.openai_replies import Shape
from noria.inference.openai_schema import ApiError, Sampling, invalid, shown
from noria.inference.serving import ServedChoice, TokenLogprob, Wanted, token_logprob
from noria.inference.structured import BrokenStructure, Constraint, Structures
from noria.inference.tool_calls import CallForm, CallReader, ChatMessage, Structure, call_form
from noria.types import Message


class Server(Protocol):
    """What a plan needs of the server."""

    engine: Engine
    tokenizer: ChatTokenizer
    consents: Sequence[str]

    @property
    def structures(self) -> Structures: ...

    def check_model(self, name: str) -> None: ...


@dataclass(frozen=True)
class Plan:
    """A checked request: what to sample, how to shape the reply, what to log. `wanted` has one entry a choice.

    `echo` gives a choice as the message that the client will send back, calls as text as in `messages`.
    """

    prefix: str
    wanted: tuple[Wanted, ...]
    sampling: Sampling
    shape: Callable[[Mapping[str, Any]], Shape]
    prompt_tokens: int
    messages: tuple[Message, ...]
    user: str
    consent: str
    stream: bool
    include_usage: bool
    echo: Callable[[ServedChoice], Message] | None = None


async def plan_chat(server: Server, body: Any) -> Plan:
    """Raises ApiError."""
    ask = parse_chat_request(body)
    server.check_model(ask.model)
    _check_biases(ask.sampling, server.engine.config.vocab_size)
    consent = ask.metadata.get("consent", server.consents[0])
    if consent not in server.consents:
        allowed = ", ".join(server.consents)
        raise invalid(f"consent {shown(consent)} is unknown; allowed: {allowed}.", "metadata.consent")
    form = call_form(server.tokenizer)
    _check_tools(ask, form)
    # In a thread: a megabyte of text takes a while to tokenise, and others are being served.
    prompt_ids = await asyncio.to_thread(_chat_prompt, server.tokenizer, form, ask)
    wanted = Wanted(prompt_ids, structure=await _constraint(server, ask.structure, _field(body)))
    if ask.forced:
        assert form is not None
        forced = form.force(ask.tools)
        kept = await _constraint(server, forced.structure, "tool_choice")
        wanted = Wanted([*prompt_ids, *forced.opening_ids], forced.opening, kept)
    _check_fit(wanted.prompt_ids, server.engine.context, "messages")
    tools = {tool.name: tool for tool in ask.tools}
    reader = (lambda: CallReader(form, tools)) if form and tools else None
    return Plan(
        prefix=ChatReply.prefix,
        wanted=(wanted,) * ask.sampling.n,
        sampling=ask.sampling,
        shape=lambda head: ChatReply(ask, head, reader),
        prompt_tokens=len(prompt_ids),
        messages=tuple(
            form.plain(message) if form else Message(message.role, message.content) for message in ask.messages
        ),
        user=ask.user,
        consent=consent,
        stream=ask.stream,
        include_usage=ask.include_usage,
        echo=lambda choice: _echo(ask, form, reader, wanted.opening + choice.text, choice.token_ids),
    )


def _echo(
    ask: ChatRequest, form: CallForm | None, reader: Callable[[], CallReader] | None, text: str, ids: Sequence[int]
) -> Message:
    if form is None or reader is None:
        return Message("assistant", text)
    reading = reader()
    shown = reading.feed(text)
    rest, calls = reading.finish(ids)
    kept = calls if ask.parallel_calls else calls[:1]
    return form.plain(ChatMessage("assistant", (shown + rest).strip() if kept else shown + rest, tuple(kept)))


def _check_tools(ask: ChatRequest, form: CallForm | None) -> None:
    used = ask.tools or any(message.calls for message in ask.messages)
    if used and form is None:
        message = "This model's chat template has no tools; leave out 'tools' and messages with tool calls."
        raise invalid(message, "tools", "unsupported_parameter")
    if ask.tools and form is not None and (refusal := form.refuse(ask.tools)):
        raise invalid(f"{refusal}.", "tools", "unsupported_parameter")
    strict = next((tool.name for tool in ask.tools if tool.strict), None)
    if strict and not ask.forced:
        message = f"'strict' of the tool {strict!r} can be kept only where a call is forced: leave it out, or set "
        raise invalid(f"{message}'tool_choice' to required or to a function.", "tools", "unsupported_parameter")


def _chat_prompt(tokenizer: ChatTokenizer, form: CallForm | None, ask: ChatRequest) -> list[int]:
    try:
        if form is not None:
            return form.prompt(ask.messages, ask.tools)
        return tokenizer.render([Message(message.role, message.content) for message in ask.messages])
    except ChatTemplateError as error:
        raise invalid(f"{error}.", "messages") from error


async def plan_completion(server: Server, body: Any) -> Plan:
    """Raises ApiError."""
    ask = parse_completion_request(body)
    server.check_model(ask.model)
    structure = await _constraint(server, ask.structure, _field(body))
    tokenizer, vocabulary = server.tokenizer, server.engine.config.vocab_size
    _check_biases(ask.sampling, vocabulary)
    prompts = await asyncio.to_thread(
        lambda: [tokenizer.encode_prompt(one) if isinstance(one, str) else list(one) for one in ask.prompts]
    )
    for prompt_ids in prompts:
        _check_fit(prompt_ids, server.engine.context, "prompt")
        if max(prompt_ids) >= vocabulary:
            raise invalid(f"'prompt' has a token id beyond this model's {vocabulary}.", "prompt")
    echoes = await asyncio.to_thread(_echoes, server, ask, prompts) if ask.echo else []
    return Plan(
        prefix=CompletionReply.prefix,
        wanted=tuple(Wanted(ids, structure=structure) for ids in prompts for _ in range(ask.sampling.n)),
        sampling=ask.sampling,
        shape=lambda head: CompletionReply(ask, head, echoes),
        prompt_tokens=sum(map(len, prompts)),
        messages=(),
        user=ask.user,
        # No conversation, and no word of consent in this endpoint: counts alone are logged.
        consent=server.consents[0],
        stream=ask.stream,
        include_usage=ask.include_usage,
    )


def _echoes(
    server: Server, ask: CompletionRequest, prompts: Sequence[Sequence[int]]
) -> list[tuple[str, list[TokenLogprob]]]:
    """Each prompt as text, with its tokens' log-probabilities where they are wanted."""
    decode = server.tokenizer.decode
    texts = [one if isinstance(one, str) else decode(one) for one in ask.prompts]
    if ask.sampling.logprobs is None:
        return [(text, []) for text in texts]
    top = ask.sampling.logprobs
    return [(text, _scored(server, ids, top)) for text, ids in zip(texts, prompts, strict=True)]


def _scored(server: Server, prompt_ids: Sequence[int], top: int) -> list[TokenLogprob]:
    """Every token of a prompt with its log-probability given those before it; the first has none."""
    (scores,) = server.engine.score([prompt_ids], top)
    own, ids, values = scores.token_logprobs.tolist(), scores.top_ids.tolist(), scores.top_logprobs.tolist()
    tokens = [token_logprob(server.tokenizer, prompt_ids[0], None)]
    for place, token in enumerate(prompt_ids[1:]):
        likeliest = list(zip(ids[place], values[place], strict=True))
        tokens.append(token_logprob(server.tokenizer, token, own[place], likeliest))
    return tokens


async def _constraint(server: Server, structure: Structure | None, param: str) -> Callable[[], Constraint] | None:
    """In a thread: a large schema takes a while to compile, and the first of a server its vocabulary."""
    if structure is None:
        return None
    try:
        return await asyncio.to_thread(lambda: server.structures.constraint(structure.kind, structure.value))
    except BrokenStructure as error:
        raise invalid(f"'{param}' can't be kept: {error}.", param) from error


def _field(body: Mapping[str, Any]) -> str:
    return "response_format" if body.get("structured_outputs") is None else "structured_outputs"


def _check_biases(sampling: Sampling, vocabulary: int) -> None:
    beyond = [token for token in sampling.logit_bias if token >= vocabulary]
    if beyond:
        raise invalid(f"'logit_bias' names token {beyond[0]}, beyond this model's {vocabulary}.", "logit_bias")


def _check_fit(prompt_ids: Sequence[int], context: int, param: str) -> None:
    if not prompt_ids:
        raise invalid("The prompt is empty, and this model has no token to begin a text with.", param)
    if len(prompt_ids) >= context:
        message = (
            f"This model's maximum context length is {context} tokens, and the reply needs at least 1 of them. "
            f"However, your {param} resulted in {len(prompt_ids)} tokens. Please shorten the {param}."
        )
        raise ApiError(400, message, param, "context_length_exceeded")
