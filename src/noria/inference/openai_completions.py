"""The completions wire format (text in, text out, no chat template), as pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from noria.inference.openai_schema import (
    MAX_CHOICES,
    MAX_TOP_LOGPROBS,
    SAMPLING_FIELDS,
    Sampling,
    checked_body,
    invalid,
    read_boolean,
    read_integer,
    read_sampling,
    read_stream,
    read_user,
    usage,
)
from noria.inference.serving import ServedChoice, TokenLogprob
from noria.inference.structured_request import STRUCTURE_FIELDS, read_structure
from noria.inference.tool_calls import Structure

DEFAULT_MAX_TOKENS = 16  # the public API's
KNOWN = SAMPLING_FIELDS | STRUCTURE_FIELDS | {
    *("model", "prompt", "echo", "logprobs", "stream", "stream_options", "user", "safety_identifier"),
}  # fmt: skip
COMPLETION_NEUTRAL: Mapping[str, tuple[Any, ...]] = {"suffix": (None,), "best_of": (None, 1)}
FINISH = {"stop": "stop", "length": "length", "aborted": "stop"}


@dataclass(frozen=True)
class CompletionRequest:
    """A valid request: prompts as text or token ids, each answered `sampling.n` times."""

    model: str
    prompts: tuple[str | tuple[int, ...], ...]
    sampling: Sampling
    echo: bool = False
    stream: bool = False
    include_usage: bool = False
    user: str = ""
    structure: Structure | None = None


def parse_completion_request(raw: Any) -> CompletionRequest:
    """Checks a decoded JSON body. Raises ApiError(400) with the parameter at fault."""
    body = checked_body(raw, KNOWN, COMPLETION_NEUTRAL)
    echo, (stream, include_usage) = read_boolean(body, "echo"), read_stream(body)
    logprobs = read_integer(body, "logprobs", 0, MAX_TOP_LOGPROBS)
    body.setdefault("max_tokens", DEFAULT_MAX_TOKENS)
    if body["max_tokens"] is None:
        body["max_tokens"] = DEFAULT_MAX_TOKENS
    # 0 scores the prompt alone, which evaluations do.
    sampling = read_sampling(body, "max_tokens", logprobs, least_tokens=0 if echo else 1)
    prompts = _prompts(body.get("prompt"))
    if len(prompts) * sampling.n > MAX_CHOICES:
        message = f"{len(prompts)} prompts of n={sampling.n} are {len(prompts) * sampling.n} choices; at most "
        raise invalid(f"{message}{MAX_CHOICES} are taken in one request.", "prompt")
    return CompletionRequest(
        body["model"], prompts, sampling, echo, stream, include_usage, read_user(body), read_structure(body)
    )


def _prompts(value: Any) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        if all(map(_is_id, value)):
            return (tuple(value),)
        if all(isinstance(one, str) for one in value):
            return tuple(value)
        if all(isinstance(one, list) and one and all(map(_is_id, one)) for one in value):
            return tuple(tuple(one) for one in value)
    raise invalid("'prompt' must be text, an array of texts, token ids, or an array of token ids.", "prompt")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


class CompletionReply:
    """Shapes one request's sampled pieces as text completions: chunks of a stream, or one body."""

    prefix = "cmpl-"

    def __init__(
        self,
        ask: CompletionRequest,
        head: Mapping[str, Any],
        echoes: Sequence[tuple[str, Sequence[TokenLogprob]]],
    ) -> None:
        """`echoes` are (text, tokens) of each prompt where they are wanted back, else empty."""
        self._ask, self._head, self._echoes = ask, head, echoes
        self._texts = [""] * (len(ask.prompts) * ask.sampling.n)
        self._offsets = [0] * len(self._texts)
        self._logprobs: list[dict[str, Any] | None] = [None] * len(self._texts)

    def opening(self) -> list[dict[str, Any]]:
        return [
            chunk
            for index in range(len(self._texts) if self._echoes else 0)
            for chunk in self.piece(index, *self._echoes[index // self._ask.sampling.n])
        ]

    def piece(self, index: int, text: str, tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        """The chunks for one more piece of choice `index`."""
        logprobs = self._logprobs_json(index, text, tokens) if self._ask.sampling.logprobs is not None else None
        self._texts[index] += text
        if logprobs is not None:
            whole = self._logprobs[index]
            self._logprobs[index] = {key: [*(whole[key] if whole else ()), *logprobs[key]] for key in logprobs}
        return [self._body([self._choice(index, text, logprobs)])] if text or logprobs else []

    def ending(self, choices: Sequence[ServedChoice]) -> list[dict[str, Any]]:
        return [
            self._body([self._choice(index, "", None, FINISH[choice.finish])]) for index, choice in enumerate(choices)
        ]

    def usage(self, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
        """The closing chunk that carries only the usage."""
        return {**self._body([]), "usage": usage(prompt_tokens, completion_tokens)}

    def whole(self, choices: Sequence[ServedChoice], prompt_tokens: int) -> dict[str, Any]:
        """The body of a reply that is not streamed; every piece has been through `piece`."""
        made = [
            self._choice(index, self._texts[index], self._logprobs[index], FINISH[choice.finish])
            for index, choice in enumerate(choices)
        ]
        used = usage(prompt_tokens, sum(len(choice.token_ids) for choice in choices))
        return {**self._body(made), "usage": used}

    def _logprobs_json(self, index: int, text: str, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        start, offsets = self._offsets[index], []
        for token in tokens:
            offsets.append(start)
            start += token.characters
        self._offsets[index] += len(text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{one.text: one.logprob for one in token.top} or None for token in tokens],
            "text_offset": offsets,
        }

    def _body(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": "text_completion", "choices": choices}

    @staticmethod
    def _choice(index: int, text: str, logprobs: Mapping[str, Any] | None, finish: str | None = None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
