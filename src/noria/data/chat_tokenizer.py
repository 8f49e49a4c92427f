"""What talking to a model needs of a tokenizer, and which of the two kinds lies in a model folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from noria.data.imported_tokenizer import ImportedTokenizer
from noria.data.tokenizer import Tokenizer
from noria.types import Message


class ChatTokenizer(Protocol):
    end: int
    ends: tuple[int, ...]  # all ids that end a turn, `end` among them
    pad: int

    @property
    def special_ids(self) -> tuple[int, ...]: ...

    @property
    def token_bytes(self) -> list[bytes]: ...

    def render(self, messages: Sequence[Message], generation: bool = True) -> list[int]: ...

    def encode(self, text: str) -> list[int]: ...

    def encode_prompt(self, text: str) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def encode_reply(self, text: str) -> list[int]: ...


def load_chat_tokenizer(folder: Path) -> ChatTokenizer:
    """An imported model brings a tokenizer_config.json; without one it is a tokenizer of this project.

    Raises ValueError where the folder's tokenizer can't be read or has no chat template.
    """
    if (folder / "tokenizer_config.json").is_file():
        return ImportedTokenizer.load(folder)
    return Tokenizer.load(folder / "tokenizer.json")
