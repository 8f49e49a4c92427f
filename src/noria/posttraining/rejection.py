"""Rejection sampling: keep what the policy itself answers correctly, readably and without repeating itself."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Literal

from noria.evals.benchmarks import grade
from noria.grading.monitors import language_mix
from noria.posttraining.grpo import Roll
from noria.types import THINK_OPEN, Message, Node, Score, Task, Trace, seed_of, split_thinking

Verdict = Literal["kept", "ungraded", "wrong", "truncated", "unreadable", "repetitive", "mixed_language"]
BATCH = 256


def sample_and_keep(
    tasks: Sequence[Task],
    roll: Roll,
    samples: int,
    tasks_per_family: int,
    seed: int,
    report: Callable[[float, float, str, str], None],
    only_correct: bool = True,
) -> tuple[list[tuple[Task, str]], dict[str, int]]:
    """(task, reply) of the first sample of each task that passes every filter, and how many samples ended how.

    Without `only_correct` the first sample of each task is kept whatever it is worth.
    """
    chosen = _per_family(tasks, tasks_per_family, seed)
    repeated = [task for task in chosen for _ in range(samples)]
    seeds = [seed_of("rejection", seed, task.id, index % samples) for index, task in enumerate(repeated)]
    kept: dict[str, tuple[Task, str]] = {}
    counts: Counter[str] = Counter()
    for start in range(0, len(repeated), BATCH):
        batch = repeated[start : start + BATCH]
        traces = roll(batch, seeds[start : start + BATCH])
        for task, trace, score in zip(batch, traces, grade(batch, traces), strict=True):
            verdict = judge(trace, score)
            counts[verdict] += 1
            if verdict == "kept" or not only_correct:
                kept.setdefault(task.id, (task, trace.reply))
        report(start + len(batch), len(repeated), "samples", f"{len(kept)} tasks kept")
    return list(kept.values()), {f"samples_{name}": count for name, count in sorted(counts.items())}


def select_demonstrations(
    demonstrations: Sequence[tuple[Task, str]],
) -> tuple[list[tuple[Task, str]], dict[str, int]]:
    """Those that pass the filters of `judge`, and how many ended how: R1's selection of its cold-start data, which is
    correct, readable, and free of loops and of mixed languages (arXiv 2501.12948, section 2.3.1)."""
    kept: list[tuple[Task, str]] = []
    counts: Counter[str] = Counter()
    for start in range(0, len(demonstrations), BATCH):
        batch = demonstrations[start : start + BATCH]
        tasks = [task for task, _ in batch]
        traces = [_as_trace(task, reply) for task, reply in batch]
        for pair, trace, score in zip(batch, traces, grade(tasks, traces), strict=True):
            verdict = judge(trace, score)
            counts[verdict] += 1
            if verdict == "kept":
                kept.append(pair)
    return kept, {f"demonstrations_{name}": count for name, count in sorted(counts.items())}


def _as_trace(task: Task, reply: str) -> Trace:
    nodes = [*(Node((), message) for message in task.messages), Node((), Message("assistant", reply))]
    return Trace(f"demonstration {task.id}", task.id, tuple(nodes), 0, "demonstration", "finished")


def judge(trace: Trace, score: Score) -> Verdict:
    """The filters of R1's third stage: correct; finished; thinking closed and answered; no loops; one language."""
    if score.value is None:
        return "ungraded"
    if trace.outcome != "finished":
        return "truncated"
    if score.value < 1.0:
        return "wrong"
    thinking, answer = split_thinking(trace.reply)
    if not trace.reply.startswith(THINK_OPEN) or not thinking or not answer:
        return "unreadable"
    if is_repetitive(thinking):
        return "repetitive"
    return "mixed_language" if language_mix([trace.reply]) > 0.05 else "kept"


def is_repetitive(text: str) -> bool:
    """Whether one clause (between commas) comes five times or more.

    Honest work repeats too: a chain of four `or` has four equal steps, and 333 + 111 three.
    """
    clauses = Counter(clause.strip() for clause in text.split(","))
    return max(clauses.values()) >= 5


def _per_family(tasks: Sequence[Task], count: int, seed: int) -> list[Task]:
    families: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        families[task.family].append(task)
    chosen = []
    for family, members in sorted(families.items()):
        random.Random(seed_of("rejection tasks", seed, family)).shuffle(members)
        chosen += members[:count]
    return chosen
