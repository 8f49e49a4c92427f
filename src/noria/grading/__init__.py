"""Graders: who decides what a reply is worth, and monitors of whether that decision still means anything.

`grader_for(name or GraderRef)` finds a grader. To add one, write a function (task, answer) -> Verdict and wrap it in a
TextGrader; docs/stage6_evaluation.md shows it in ten lines.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from noria.grading.grader import Failure, Grader, TextGrader, Verdict, failures, one_by_one, rewards, version_of
from noria.grading.verify_alignment import helpful_grader, safety_grader
from noria.grading.verify_code import code_grader, code_weak_grader
from noria.grading.verify_format import format_grader
from noria.grading.verify_gym import gym_grader
from noria.grading.verify_logic import logic_grader
from noria.grading.verify_math import maths_grader, maths_weak_grader
from noria.types import GraderRef

GRADERS: dict[str, Callable[[], TextGrader]] = {
    "maths": maths_grader,
    "code": code_grader,
    "logic": logic_grader,
    "helpful": helpful_grader,
    "safety": safety_grader,
    "maths_weak": maths_weak_grader,
    "code_weak": code_weak_grader,
}

# Graders of tasks that are made for one run and not part of the registry of evaluation tasks.
OUTSIDE: dict[str, Callable[[], TextGrader]] = {"gym": gym_grader, "format": format_grader}

# What a policy may be trained against while the exact grader of the same name is held out.
WEAK_TWINS = {"maths": "maths_weak", "code": "code_weak"}


@cache
def _built(name: str) -> TextGrader:
    return (GRADERS | OUTSIDE)[name]()


def grader_for(ref: GraderRef | str) -> TextGrader:
    """The grader that `ref` names, as it is now. Its scores carry the version that judged, not the one asked for."""
    name = ref if isinstance(ref, str) else ref.name
    if name not in GRADERS | OUTSIDE:
        raise KeyError(f"no grader is named {name!r}; there are {', '.join(sorted(GRADERS | OUTSIDE))}")
    return _built(name)


def grader_ref(name: str) -> GraderRef:
    """The name and current version of a grader, to put on tasks."""
    return grader_for(name).ref


def grader_versions() -> dict[str, str]:
    """The current version of every grader of the registry: part of the identity of whatever a grader decides on."""
    return {name: grader_ref(name).version for name in sorted(GRADERS)}


__all__ = [
    "GRADERS",
    "WEAK_TWINS",
    "Failure",
    "Grader",
    "TextGrader",
    "Verdict",
    "code_grader",
    "code_weak_grader",
    "failures",
    "grader_for",
    "grader_ref",
    "grader_versions",
    "helpful_grader",
    "logic_grader",
    "maths_grader",
    "maths_weak_grader",
    "one_by_one",
    "rewards",
    "safety_grader",
    "version_of",
]
