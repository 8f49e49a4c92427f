"""Logic: the answer is one word (true, false, a name), equal to the gold word after normalisation and nothing else."""

from __future__ import annotations

import re
import sys

from noria.grading import final_answer
from noria.grading.final_answer import commitment
from noria.grading.grader import Failure, TextGrader, Verdict, one_by_one, version_of
from noria.types import Task

_LEAD = re.compile(r"^(?:so|thus|therefore|hence|it is|it's)[\s,:]+", re.IGNORECASE)


def logic_grader() -> TextGrader:
    """The exact grader: 1 where the committed answer is the gold word, else 0."""
    version = version_of(sys.modules[__name__], final_answer)
    return TextGrader("logic", version, one_by_one(judge_logic))


def judge_logic(task: Task, answer: str) -> Verdict | Failure:
    gold = normalise(task.answer)
    if not gold:
        return Failure("invalid_task", f"task {task.id} has no gold answer")
    stated = normalise(answer)
    if stated != gold:
        stated = normalise(commitment(answer) or "")
    # "not true" and "true or false" differ from "true" as words, so no list of hedges is needed.
    return Verdict(float(stated == gold), f"stated {stated[:80]!r}, expected {gold!r}", {"parsed": float(bool(stated))})


def normalise(text: str) -> str:
    """`text` in lower case with single spaces, without punctuation around it and without "so", "it is" before it."""
    words = " ".join(text.split()).casefold()
    words = words.strip(" .!,;:\"'`*$“”‘’()[]{}")
    return _LEAD.sub("", words).strip()
