"""The bytes that each token of a vocabulary stands for, whether or not they are whole characters."""

from __future__ import annotations

import json
import re

import tokenizers

SPACE = "\u2581"  # what SentencePiece writes for a space


def token_bytes(inner: tokenizers.Tokenizer) -> list[bytes]:
    """By token id. Special and added tokens stand for their spelling; ids without a token for nothing."""
    byte_level = '"ByteLevel"' in json.dumps(json.loads(inner.to_str())["decoder"])
    added = {index: token.content for index, token in inner.get_added_tokens_decoder().items()}
    found: list[bytes] = []
    for index in range(max(inner.get_vocab(with_added_tokens=True).values()) + 1):
        piece = inner.id_to_token(index)
        if index in added:
            found.append(added[index].encode())
        elif piece is None:
            found.append(b"")
        else:
            found.append(_of_byte_level(piece) if byte_level else _of_byte_fallback(piece))
    return found


def _of_byte_level(piece: str) -> bytes:
    return b"".join(BYTE_OF[char] if char in BYTE_OF else char.encode() for char in piece)


def _of_byte_fallback(piece: str) -> bytes:
    single = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", piece)
    return bytes.fromhex(single[1]) if single else piece.replace(SPACE, " ").encode()


def _byte_of() -> dict[str, bytes]:
    """GPT-2's alphabet: printable bytes are themselves, the others the characters from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    pairs = [(chr(byte), byte) for byte in printable] + [(chr(256 + place), byte) for place, byte in enumerate(hidden)]
    return {char: bytes([byte]) for char, byte in pairs}


BYTE_OF = _byte_of()
