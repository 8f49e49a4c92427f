"""The tokenizer and chat template that came with an imported model, with the same surface as `Tokenizer`.

Text never becomes a special token here either: a message that spells one is encoded apart from the template around it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from noria.data.token_bytes import token_bytes
from noria.types import Message, digest

# Around the number of a message whose text is put in later; private-use characters, which no template writes.
OPEN, CLOSE = "\ue0f0", "\ue0f1"


class ChatTemplateError(ValueError):
    """The template refuses these messages, or the folder has none; the message says which."""


class ImportedTokenizer:
    """Immutable; `end` is the id that ends the assistant's turn, `ends` are all that do."""

    def __init__(
        self, tokenizer_json: str, template: str, names: dict[str, str], ends: Sequence[int], pad: int
    ) -> None:
        self._text = tokenizers.Tokenizer.from_str(tokenizer_json)
        self._text.encode_special_tokens = True  # what spells a special token is text
        self._marked = tokenizers.Tokenizer.from_str(tokenizer_json)
        self.template, self._names = template, names
        self.ends, self.end, self.pad = tuple(ends), ends[0], pad
        self.bos: int | None = self._text.token_to_id(names.get("bos_token", "")) if names.get("bos_token") else None
        self._specials = [token.content for token in self._text.get_added_tokens_decoder().values() if token.special]
        self.end = self._turn_end()

    @classmethod
    def load(cls, folder: Path) -> ImportedTokenizer:
        """Read tokenizer.json and what lies beside it. Raises ChatTemplateError, ValueError for a damaged file."""
        settings = _json(folder / "tokenizer_config.json")
        generation = _json(folder / "generation_config.json")
        names = {name: _content(settings.get(name)) for name in ("bos_token", "eos_token", "pad_token")}
        inner = (folder / "tokenizer.json").read_text(encoding="utf-8")
        ends = generation.get("eos_token_id")
        try:
            ids = tokenizers.Tokenizer.from_str(inner)
        except Exception as error:  # the library raises a bare Exception for every malformed file
            raise ValueError(f"{folder / 'tokenizer.json'}: not a tokenizer file: {error}") from error
        if ends is None:
            ends = ids.token_to_id(names["eos_token"]) if names["eos_token"] else None
        if ends is None:
            raise ChatTemplateError(f"{folder} does not say which token ends a turn (eos_token_id)")
        ends = ends if isinstance(ends, list) else [ends]
        pad = ids.token_to_id(names["pad_token"]) if names["pad_token"] else None
        return cls(inner, _template(folder, settings), names, ends, ends[0] if pad is None else pad)

    def _turn_end(self) -> int:
        """The end that the template writes after an assistant's message: where there are several, the first may end a
        document instead, and a model trained to say it would not end its turn as its template does."""
        try:
            ids = self.render([Message("user", "?"), Message("assistant", "!")], generation=False)
        except ChatTemplateError:
            return self.ends[0]
        return next((index for index in reversed(ids) if index in self.ends), self.ends[0])

    @cached_property
    def digest(self) -> str:
        return digest(self._text.to_str(), self.template)

    @property
    def vocab_size(self) -> int:
        return self._text.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; never a special one."""
        return self._text.encode(text, add_special_tokens=False).ids

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in self._text.encode_batch_fast(list(texts), add_special_tokens=False)]

    encode_reply = encode

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a text to be continued, with what the tokenizer puts before each text (a bos token, or nothing)."""
        return self._text.encode(text, add_special_tokens=True).ids

    def encode_marked(self, text: str) -> list[int]:
        """Ids of trusted text, in which what spells a special token is one."""
        return self._marked.encode(text, add_special_tokens=False).ids

    @property
    def knows_tools(self) -> bool:
        """Whether the template shows tools to the model."""
        return re.search(r"{%.*\btools\b.*%}", self.template) is not None

    @cached_property
    def special_ids(self) -> tuple[int, ...]:
        """Ids that no text has."""
        return tuple(index for index, token in self._text.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """What each id stands for, as bytes; a token may hold a part of a character."""
        return token_bytes(self._text)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`. Pad, bos and the ends of a turn are dropped; other specials are spelled out."""
        silent = {self.pad, self.bos, *self.ends}
        return self._text.decode([index for index in map(int, ids) if index not in silent], skip_special_tokens=False)

    def render(self, messages: Sequence[Message], generation: bool = True) -> list[int]:
        """The ids of the chat template's text; `generation` opens the assistant's next turn.

        Equal to what `transformers` gives, unless a message spells a special token: then its text is encoded by itself.
        """
        return self.render_dicts(
            [{"role": message.role, "content": message.content} for message in messages], (), generation
        )

    def render_dicts(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = (), generation: bool = True
    ) -> list[int]:
        """`render` for messages with tool calls, and tools, as templates take them.

        Raises ChatTemplateError too where a tool or a call spells a special token: only contents are encoded apart.
        """
        self._refuse_spelt(messages, tools)
        if not any(special in message["content"] for message in messages for special in self._specials):
            return self.encode_marked(self._written(messages, tools, generation))
        ids: list[int] = []
        for number, around in self._around(messages, tools, generation, range(len(messages))):
            ids += self.encode(messages[number]["content"]) if number is not None else []
            ids += self.encode_marked(around)
        return ids

    def render_sampled(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]],
        sampled: Mapping[int, Sequence[int]],
        known: tuple[int, Sequence[int]] | None = None,
    ) -> list[int]:
        """`render_dicts` where some messages are replies as they were sampled, the end of the turn included.

        `sampled`: the message's number -> its ids, which stay as they are. `known`: a number and the very ids of
        everything up to the end of that reply; the rest is put behind them.
        """
        self._refuse_spelt(messages, tools)
        spelling = (i for i, m in enumerate(messages) if any(special in m["content"] for special in self._specials))
        ids: list[int] = []
        found = known is None
        for number, around in self._around(messages, tools, True, {*sampled, *spelling}):
            if number is not None and number in sampled:
                ids += sampled[number]
                if known is not None and number == known[0]:
                    ids, found = list(known[1]), True
            elif number is not None:
                ids += self.encode(messages[number]["content"])
            behind = self.encode_marked(around)
            # A reply brings its end; where it was cut off, the template's closes it.
            closed = number in sampled and bool(ids) and ids[-1] in self.ends
            ids += behind[1:] if closed and behind and behind[0] in self.ends else behind
        if not found:
            raise ChatTemplateError("the model's chat template leaves out a reply of the model")
        return ids

    def _refuse_spelt(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> None:
        beside = json.dumps([tools, [message.get("tool_calls") for message in messages]], ensure_ascii=False)
        if spelt := [special for special in (*self._specials, OPEN) if special in beside]:
            raise ChatTemplateError(f"a tool or a tool call spells the special token {spelt[0]}")

    def _around(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]],
        generation: bool,
        apart: Iterable[int],
    ) -> Iterator[tuple[int | None, str]]:
        """The template's text cut where the contents of the messages `apart` stand: (None, text before the first), then
        (number of the message, text behind it). Other contents are in the text."""
        apart = set(apart)
        held = [
            {
                **message,
                "content": f"{OPEN}{number}{CLOSE}" if number in apart else message["content"].replace(OPEN, ""),
            }
            for number, message in enumerate(messages)
        ]
        first, *parts = self._written(held, tools, generation).split(OPEN)
        yield None, first
        for part in parts:
            number, _, around = part.partition(CLOSE)
            yield int(number), around

    @cached_property
    def _compiled(self) -> Template:
        # The settings that `transformers` gives templates: they are written for them.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        return environment.from_string(self.template)

    def _written(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]], generation: bool) -> str:
        try:
            return self._compiled.render(
                messages=list(messages), tools=list(tools) or None, add_generation_prompt=generation, **self._names
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise ChatTemplateError(f"the model's chat template refuses these messages: {error}") from error


def _to_json(value: Any, indent: int | None = None) -> str:
    """Plain JSON, where jinja's own filter would escape what is special in HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _now(form: str) -> str:
    """Today's date, for templates that tell the model."""
    return datetime.now().strftime(form)


def _refuse(reason: str) -> None:
    raise TemplateError(reason)


def _template(folder: Path, settings: dict[str, Any]) -> str:
    path = folder / "chat_template.jinja"
    found = path.read_text(encoding="utf-8") if path.is_file() else settings.get("chat_template")
    if isinstance(found, list):  # several by name
        found = next((entry["template"] for entry in found if entry["name"] == "default"), None)
    if not found:
        raise ChatTemplateError(f"{folder} has no chat template: it is a base model, or its template was left behind")
    return found


def _content(token: Any) -> str:
    """A token of tokenizer_config.json: a text, or an object that holds it."""
    return token["content"] if isinstance(token, dict) else token or ""


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
