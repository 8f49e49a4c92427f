"""How alike two texts are, from 0 to 1, by the measures that the grader language names and that need no model."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

# Of the grader language, but not here: WordNet's synonyms and an embedding model are no part of this project.
REFUSED = {"meteor": "it needs WordNet", "cosine": "it needs an embedding model"}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def _f1(shared: int, left: int, right: int) -> float:
    return 2.0 * shared / (left + right) if left + right else 0.0


def fuzzy_match(text: str, reference: str) -> float:
    """rapidfuzz's ratio: 1 - (insertions + deletions) / (both lengths)."""
    from rapidfuzz import fuzz

    return fuzz.ratio(text, reference) / 100.0


def bleu(text: str, reference: str, most: int = 4) -> float:
    """Sentence BLEU (Papineni et al. 2002) with the brevity penalty; counts above single words are smoothed by 1 (Lin
    and Och 2004), so that a short text is not 0."""
    words, wanted = _words(text), _words(reference)
    if not words or not wanted:
        return 0.0
    logs = []
    for n in range(1, most + 1):
        found, gold = _grams(words, n), _grams(wanted, n)
        shared, total, smoothing = sum((found & gold).values()), sum(found.values()), float(n > 1)
        if shared + smoothing == 0:
            return 0.0
        logs.append(math.log((shared + smoothing) / (total + smoothing)))
    brevity = min(0.0, 1.0 - len(wanted) / len(words))
    return math.exp(sum(logs) / most + brevity)


def gleu(text: str, reference: str, most: int = 4) -> float:
    """The smaller of precision and recall over all n-grams up to four (Wu et al. 2016, arXiv 1609.08144)."""
    words, wanted = _words(text), _words(reference)
    found = sum((_grams(words, n) for n in range(1, most + 1)), Counter())
    gold = sum((_grams(wanted, n) for n in range(1, most + 1)), Counter())
    longest = max(sum(found.values()), sum(gold.values()))
    return sum((found & gold).values()) / longest if longest else 0.0


def rouge_n(n: int) -> Callable[[str, str], float]:
    """ROUGE-N as F1 (Lin 2004)."""

    def measure(text: str, reference: str) -> float:
        found, gold = _grams(_words(text), n), _grams(_words(reference), n)
        return _f1(sum((found & gold).values()), sum(found.values()), sum(gold.values()))

    return measure


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L as F1: by the longest common subsequence of words (Lin 2004)."""
    words, wanted = _words(text), _words(reference)
    lengths = [0] * (len(wanted) + 1)
    for word in words:
        before = 0
        for place, other in enumerate(wanted, start=1):
            kept = lengths[place]
            lengths[place] = before + 1 if word == other else max(lengths[place], lengths[place - 1])
            before = kept
    return _f1(lengths[-1], len(words), len(wanted))


MEASURES: dict[str, Callable[[str, str], float]] = {
    "fuzzy_match": fuzzy_match,
    "bleu": bleu,
    "gleu": gleu,
    **{f"rouge_{n}": rouge_n(n) for n in range(1, 6)},
    "rouge_l": rouge_l,
}
