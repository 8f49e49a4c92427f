"""Replies that keep to a JSON schema or a regular expression, token by token, by llguidance.

llguidance and not xgrammar: xgrammar requires triton and transformers, llguidance nothing at all (3 MB). The grammar is
walked over the tokens' bytes; at each place a mask says which tokens can come next, the end only where the form is
complete.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from torch import Tensor

Kind = Literal["json_schema", "json_object", "regex"]
UNUSED = b"\xff"  # begins no character: the bytes of ids that no text has


class Constraint(Protocol):
    """The state of one reply."""

    @property
    def complete(self) -> bool:
        """Whether nothing can follow but the end."""
        ...

    def allowed(self, vocabulary: int) -> Tensor:
        """(V,) True for each token that may come next."""
        ...

    def accept(self, token: int) -> None:
        """The token that was sampled."""
        ...


class BrokenStructure(ValueError):
    """The schema or pattern can't be compiled; the message says why."""


class Structures:
    """Compiles structures for one vocabulary. Making one takes up to a second; it can be shared between threads.

    `token_bytes` is what each id stands for, `ends` the ids that end a reply, `specials` those that no text has.
    """

    def __init__(self, token_bytes: Sequence[bytes], ends: Sequence[int], specials: Sequence[int] = ()) -> None:
        self._tokenizer = LLTokenizer(TokenizerWrapper(_Vocabulary(token_bytes, ends, specials)), eos_token=list(ends))

    def constraint(self, kind: Kind, text: str = "") -> Callable[[], Constraint]:
        """What makes a constraint for each reply. Raises BrokenStructure."""
        try:
            if kind == "regex":
                grammar = LLMatcher.grammar_from_regex(text)
            else:
                schema = text if kind == "json_schema" else '{"type": "object"}'
                grammar = LLMatcher.grammar_from_json_schema(schema)
        except ValueError as error:
            raise BrokenStructure(f"the {kind} is not JSON: {error}") from error
        first = LLMatcher(self._tokenizer, grammar, log_level=0)
        if first.is_error():
            raise BrokenStructure(f"the {kind} can't be compiled: {first.get_error().splitlines()[0]}")
        return lambda: _Matched(first.deep_copy())


class _Matched:
    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def complete(self) -> bool:
        return bool(self._matcher.is_stopped())

    def allowed(self, vocabulary: int) -> Tensor:
        mask = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8) != 0
        if self._matcher.is_error():
            raise RuntimeError(f"the grammar failed: {self._matcher.get_error()}")
        # A model may have more rows than its tokenizer has tokens.
        allowed = torch.zeros(vocabulary, dtype=torch.bool)
        allowed[: min(vocabulary, len(mask))] = mask[:vocabulary]
        return allowed

    def accept(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise RuntimeError(f"token {token} does not fit the grammar: {self._matcher.get_error()}")


class _Vocabulary:
    """The interface that llguidance's TokenizerWrapper asks for."""

    bos_token_id = None

    def __init__(self, token_bytes: Sequence[bytes], ends: Sequence[int], specials: Sequence[int]) -> None:
        silent = {*ends, *specials}
        self.eos_token_id = ends[0]
        # Two ids without text would be taken for one; a name of its own keeps each apart, out of reach of any text.
        self.tokens = [
            UNUSED + str(index).encode() if index in silent or not raw else raw for index, raw in enumerate(token_bytes)
        ]
        self.special_token_ids = sorted(silent)
        self._single = {raw[0]: index for index, raw in enumerate(self.tokens) if len(raw) == 1}

    def __call__(self, text: bytes) -> list[int]:
        """Only asked for hints, never for what a mask allows: byte by byte, where a token is that byte."""
        return [self._single[byte] for byte in text if byte in self._single]
