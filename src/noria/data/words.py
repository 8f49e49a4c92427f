"""One vectorised pass over UTF-8 bytes that gives every word's 64-bit hash; quality, deduplication and decontamination
all read from it.

A word is a run of letters and digits (ASCII case folded); a CJK character, an emoji or an operator (+ - * / = < > ^ %)
is a word of its own, so that "12 + 30" differs from "12 - 30". Everything else separates.

Shapes: N bytes of the batch, W words of the batch, D documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

BASE = np.uint64(0x9E3779B97F4A7C15)
GRAM_BASE = np.uint64(0xC2B2AE3D27D4EB4F)
LONGEST = 64  # bytes of a word that its hash sees; its whole length counts too
SEPARATOR, LETTER, OPERATOR, SINGLE = 0, 1, 2, 3


@dataclass(frozen=True)
class Words:
    """Hashes of all words of a batch, with where they are; document d owns words offsets[d]:offsets[d+1]."""

    hashes: np.ndarray  # (W,) uint64
    lengths: np.ndarray  # (W,) bytes
    operator: np.ndarray  # (W,) bool: an operator, not a word in the usual sense
    letter: np.ndarray  # (W,) bool: starts with a letter (or any non-ASCII character)
    closing: np.ndarray  # (W,) bool: a sentence or line ends between this word and the next
    offsets: np.ndarray  # (D+1,)

    @property
    def counts(self) -> np.ndarray:
        return np.diff(self.offsets)

    def rows(self) -> np.ndarray:
        """The document of each word (W,)."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.counts)


def hash_words(texts: Sequence[str]) -> Words:
    """The words of each text. Equal words have equal hashes on every machine and in every batch."""
    raws = [text.encode("utf-8", "replace") for text in texts]
    data = np.frombuffer(b"\0".join(raws) + b"\0", np.uint8)
    ends = np.cumsum([len(raw) + 1 for raw in raws]) if raws else np.zeros(0, np.int64)
    kinds = _kinds(data)
    before = np.concatenate([[np.uint8(SEPARATOR)], kinds[:-1]])
    lead = (data & 0xC0) != 0x80
    fresh = (kinds != before) | (kinds == OPERATOR) | ((kinds == SINGLE) & lead)
    breaks = np.flatnonzero(fresh)  # a word ends where anything else begins; the batch ends in a separator
    keep = kinds[breaks] != SEPARATOR
    starts, stops = breaks[keep], np.append(breaks[1:], len(data))[keep]
    return Words(
        hashes=_hash_spans(_fold(data), starts, stops),
        lengths=stops - starts,
        operator=kinds[starts] == OPERATOR,
        letter=(data[starts] >= 0x80) | ((data[starts] | 0x20) >= ord("a")) & (kinds[starts] == LETTER),
        closing=_closing(data, starts, stops),
        offsets=np.concatenate([[0], np.searchsorted(starts, ends)]),
    )


def grams(words: Words, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All `size`-word shingles: hashes, the word each starts at, and offsets by document (D+1,)."""
    total = len(words.hashes)
    if total < size:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(len(words.offsets), np.int64)
    rolled = np.zeros(total - size + 1, np.uint64)
    for place in range(size):
        rolled = rolled * GRAM_BASE + words.hashes[place : total - size + 1 + place]
    rows = words.rows()
    starts = np.flatnonzero(rows[: total - size + 1] == rows[size - 1 :])
    offsets = np.concatenate([[0], np.cumsum(np.maximum(words.counts - size + 1, 0))])
    return mix(rolled[starts] + np.uint64(size)), starts, offsets


def mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: spreads every input bit over all 64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _closing(data: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Where a line break, the end of the text, or one of . ? ! before white space follows a word."""
    ends_line = (data == 0) | (data == ord("\n"))
    marks = (data == ord(".")) | (data == ord("?")) | (data == ord("!"))
    breaks = ends_line | marks & np.append(ends_line[1:] | (data[1:] == ord(" ")), True)
    counts = np.concatenate([[0], np.cumsum(breaks)])
    return counts[np.append(starts[1:], len(data))[: len(starts)]] > counts[stops]


def _kinds(data: np.ndarray) -> np.ndarray:
    kinds = _table()[data]
    after = np.concatenate([data[1:], [np.uint8(0)]])
    leads = np.flatnonzero((data >= 0xE2) & (data < 0xF8))
    first, second = data[leads], after[leads]
    general = (first == 0xE2) & (second <= 0x81)  # U+2000-207F: dashes, quotes, ellipsis
    marks = (first == 0xE3) & (second == 0x80)  # U+3000-303F: CJK punctuation
    wide = (first == 0xEF) & (second >= 0xBC)  # U+FF00-: full-width forms
    single = ((first >= 0xE3) & (first <= 0xED) | (first >= 0xF0)) & ~marks
    for chosen, kind in ((general | marks | wide, SEPARATOR), (single, SINGLE)):
        for step in range(4 if kind == SINGLE else 3):
            places = leads[chosen] + step
            places = places[places < len(data)]
            if step:
                places = places[(data[places] & 0xC0) == 0x80]
            kinds[places] = kind
    return kinds


@lru_cache(maxsize=1)
def _table() -> np.ndarray:
    table = np.zeros(256, np.uint8)
    for byte in b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789":
        table[byte] = LETTER
    table[0x80:] = LETTER
    for byte in b"+-*/=<>^%":
        table[byte] = OPERATOR
    return table


def _fold(data: np.ndarray) -> np.ndarray:
    upper = (data >= ord("A")) & (data <= ord("Z"))
    return data + (upper.astype(np.uint8) << np.uint8(5))


def _hash_spans(data: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Polynomial hash (modulo 2^64) of the length and the first LONGEST bytes of data[start:stop], for each span."""
    lengths = stops - starts
    reach = np.minimum(lengths, LONGEST).astype(np.uint8)
    order = np.argsort(LONGEST - reach, kind="stable")  # longest first: the spans that reach byte `place` are a prefix
    begins, rolled = starts[order], lengths[order].astype(np.uint64)
    longer = len(starts) - np.cumsum(np.bincount(reach, minlength=LONGEST + 1))[:LONGEST]
    for place, count in enumerate(longer):
        if count == 0:
            break
        rolled[:count] = rolled[:count] * BASE + data[begins[:count] + place]
    hashes = np.empty_like(rolled)
    hashes[order] = rolled
    return mix(hashes)
