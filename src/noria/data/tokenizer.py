"""Text to tokens and back: a byte-level BPE trained here, the chat format, and the guard around special tokens.

Special tokens enter a sequence only through `render` and `encode_reply`, which write their ids. `encode` treats every
character as text, so a document or a user that spells `<|end|>` gets the letters, never the token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from noria.data.token_bytes import token_bytes
from noria.types import THINK_CLOSE, THINK_OPEN, Message, digest

CALL = "<|call|>"
SPECIALS = (
    "<|pad|>",
    "<|bos|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
    CALL,
    THINK_OPEN,
    THINK_CLOSE,
)
BYTES = 256
SMALLEST_VOCABULARY = len(SPECIALS) + BYTES

# The cl100k pattern with one change: a digit is always alone (arithmetic is learnt per digit, and numbers align).
# No piece holds letters followed by punctuation, so no merge can ever spell a special token.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SURROGATES = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """A trained vocabulary with the project's chat format. Immutable; safe to share between threads."""

    pad, bos, end, system, user, assistant, tool, call, think_open, think_close = range(len(SPECIALS))
    ends: tuple[int, ...] = (end,)

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        found = tuple(inner.id_to_token(index) for index in range(len(SPECIALS)))
        if found != SPECIALS:
            raise ValueError(f"not a tokenizer of this project: its first tokens are {found}, expected {SPECIALS}")
        self._inner = inner
        self._inner.encode_special_tokens = True  # spelled specials are plain text; not kept in the file, so set here

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """Read a tokenizer.json. Raises ValueError when it is no tokenizer or has other special tokens."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        try:
            inner = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises a bare Exception for every malformed file
            raise ValueError(f"not a tokenizer file: {error}") from error
        return cls(inner)

    def to_json(self) -> str:
        """A Hugging Face tokenizer.json in canonical form: equal tokenizers give equal bytes."""
        return json.dumps(json.loads(self._inner.to_str()), ensure_ascii=False, indent=1) + "\n"

    def save(self, path: Path | str) -> None:
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @cached_property
    def digest(self) -> str:
        return digest(self.to_json())

    @property
    def vocab_size(self) -> int:
        return self._inner.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; never a special one. A lone surrogate (not text in any encoding) becomes U+FFFD."""
        return self._inner.encode(_clean(text), add_special_tokens=False).ids

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores that the library may use."""
        encodings = self._inner.encode_batch_fast([_clean(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a text to be continued, as documents begin in training."""
        return [self.bos, *self.encode(text)]

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids that no text has."""
        return tuple(range(len(SPECIALS)))

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """What each id stands for, as bytes; a token may hold a part of a character."""
        return token_bytes(self._inner)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`. Pad, bos and end are dropped; other specials are spelled out; broken UTF-8 becomes U+FFFD."""
        silent = (self.pad, self.bos, self.end)
        kept = [index for index in map(int, ids) if index not in silent]
        return self._inner.decode(kept, skip_special_tokens=False)

    def encode_reply(self, text: str) -> list[int]:
        """Ids of trusted assistant text: a leading <think>..</think> and a leading <|call|> become special tokens.

        An unclosed <think> opens and never closes. No <|end|> is added. `decode` gives the text back.
        """
        ids: list[int] = []
        if text.startswith(THINK_OPEN):
            thinking, closed, text = text[len(THINK_OPEN) :].partition(THINK_CLOSE)
            ids += [self.think_open, *self.encode(thinking)]
            if closed:
                ids.append(self.think_close)
        if text.startswith(CALL):
            ids.append(self.call)
            text = text[len(CALL) :]
        return ids + self.encode(text)

    def render(self, messages: Sequence[Message], generation: bool = True) -> list[int]:
        """<|bos|>, then <|role|> body <|end|> for each message; `generation` opens the assistant's next turn."""
        roles = {"system": self.system, "user": self.user, "assistant": self.assistant, "tool": self.tool}
        ids = [self.bos]
        for message in messages:
            encode = self.encode_reply if message.role == "assistant" else self.encode
            ids += [roles[message.role], *encode(message.content), self.end]
        return [*ids, self.assistant] if generation else ids


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE of `vocab_size` tokens: the specials from id 0, the 256 bytes, then merges by frequency.

    Fewer tokens come out when the texts hold fewer merges. Deterministic for equal texts in equal order.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(
            f"vocab_size {vocab_size} leaves no room: {SMALLEST_VOCABULARY} are taken by specials and bytes"
        )
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in SPECIALS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator((_clean(text) for text in texts), trainer)
    return Tokenizer(inner)


def _clean(text: str) -> str:
    return text if text.isascii() else SURROGATES.sub("\ufffd", text)
