"""Instruction format: does a reply have the form that was asked for? Rules after IFEval (arXiv 2311.07911), small.

What is checked is the form alone and never whether the content is right: a guard of general ability in post-training.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from noria.grading.grader import Failure, TextGrader, Verdict, one_by_one, version_of
from noria.types import Task


def format_grader() -> TextGrader:
    """1 where the reply passes the check that `task.hidden` names ("check", with "value"), else 0."""
    return TextGrader("format", version_of(sys.modules[__name__]), one_by_one(judge_format))


def judge_format(task: Task, answer: str) -> Verdict | Failure:
    check = CHECKS.get(str(task.hidden.get("check", "")))
    if check is None:
        return Failure("invalid_task", f"task {task.id} names no check; there are {', '.join(sorted(CHECKS))}")
    passed = bool(answer.strip()) and check(answer.strip(), task.hidden.get("value"))
    return Verdict(float(passed), f"{task.hidden['check']}: {'passed' if passed else 'failed'}")


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'’-]+", text)


def _is_json_object(text: str, key: Any) -> bool:
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return isinstance(found, Mapping) and key in found


CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "lower_case": lambda text, _: text == text.lower(),
    "capitals": lambda text, _: text == text.upper(),
    "at_most_words": lambda text, most: len(_words(text)) <= most,
    "at_least_words": lambda text, least: len(_words(text)) >= least,
    "contains": lambda text, word: str(word).lower() in text.lower(),
    "avoids": lambda text, word: str(word).lower() not in (found.lower() for found in _words(text)),
    "starts_with": lambda text, start: text.lower().startswith(str(start).lower()),
    "ends_with": lambda text, end: text.lower().endswith(str(end).lower()),
    "no_commas": lambda text, _: "," not in text,
    "list_lines": lambda text, count: len(re.findall(r"^\s*(?:[-*•]|\d+[.)])\s+\S", text, re.MULTILINE)) == count,
    "json_key": _is_json_object,
    "question": lambda text, _: text.endswith("?"),
}
