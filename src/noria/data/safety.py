"""A lexicon filter for unsafe text: a coarse net of phrases, named as such.

It counts phrases of two categories (sexual, weapons) and rejects a document when one category is dense in it. A single
mention never rejects: encyclopaedias and scripture mention much. It is no classifier: it knows English only, misses
paraphrase, and its counts are kept as signals so that a better filter can be compared with it.
"""

from __future__ import annotations

import re

LEXICON = {
    "sexual": (
        r"porn(?:o|ographic|ography)?|xxx (?:video|movie|pic)s?|hardcore sex|sex (?:cam|chat|tape)s?|nude pics?"
        r"|escort service|blow ?jobs?|cum ?shots?|milfs?|hentai"
    ),
    "weapons": (
        r"pipe bombs?|build a bomb|make (?:a )?(?:bomb|explosive)s?|nerve agents?|sarin|ricin (?:extract|production)\w*"
        r"|synthesi[sz]e (?:vx|sarin|ricin)|ghost guns?|thermite recipe"
    ),
}
PATTERNS = {category: re.compile(rf"\b(?:{phrases})\b", re.IGNORECASE) for category, phrases in LEXICON.items()}


# Every phrase holds one of these: finding substrings is many times as fast as the expressions.
STEMS = "porn|xxx |hardcore|sex |nude pic|escort|blow|cumshot|cum shot|milf|hentai|bomb|explosive".split("|")
STEMS += "nerve agent|sarin|ricin|synthesi|ghost gun|thermite".split("|")


def unsafe_counts(text: str) -> dict[str, int]:
    """How often phrases of each category occur; categories without a hit are left out."""
    lower = text.lower()
    if not any(stem in lower for stem in STEMS):
        return {}
    counts = {category: len(pattern.findall(text)) for category, pattern in PATTERNS.items()}
    return {category: count for category, count in counts.items() if count}


def unsafe_reason(text: str, counts: dict[str, int], hits: int, per_thousand_words: float) -> str:
    """Why a document is rejected ("" if it is not): at least `hits` of a category and at least this density."""
    if not counts:
        return ""
    words = max(1, len(text.split()))
    for category, count in sorted(counts.items()):
        if count >= hits and 1000 * count / words >= per_thousand_words:
            return f"{category}: {count} phrases in {words} words"
    return ""
