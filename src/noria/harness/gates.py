"""The gates that an environment must pass before anyone trains in it: pure functions of recorded runs.

An environment whose cheats pay, whose grader can be fooled or whose tools are flaky teaches its holes first.
`harness/examine.py` makes the runs; each gate says what it saw.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from noria.harness.traces import Recorded
from noria.types import Score, Task

NEAR_ZERO = 0.1  # what those who do nothing, act at random or cheat may earn, as a share of what the tasks can pay
TOO_MUCH = 0.15  # what they must be shown not to earn: no number of tasks shows that a run is worth 0.1 and not 0.101
DOUBT = 0.025  # how often chance alone may show so
FEWEST = math.ceil(math.log(DOUBT) / math.log(1 - TOO_MUCH))  # of fewer tasks, none that was paid shows nothing yet
SLACK = 1e-9  # of sums of partial rewards
HIGH = 0.5  # a single hostile trace that is paid this much was paid for nothing
ENOUGH_BETWEEN = (
    0.3  # share of tasks that a noisy policy solves sometimes: those are what a group advantage learns from
)
BINS = 5
Worth = Literal["much", "unclear", "little"]
WORST_FIRST: tuple[Worth, ...] = ("much", "unclear", "little")


@dataclass(frozen=True)
class Gate:
    """One gate's finding. `figure` stands in the table, `evidence` says what it rests on; `note` is told of a gate that
    passed, too."""

    name: str
    passed: bool
    figure: str
    evidence: str
    note: str = ""


@dataclass(frozen=True)
class Unearned:
    """The run of an agent that must earn nothing. `no_more` says why no more tasks could be had: then these are all
    that there are. "" where there may be more."""

    run: Recorded
    no_more: str = ""


@dataclass(frozen=True)
class Fuzzed:
    """A hostile trace and what the grader made of it: a score, or the error that it raised."""

    what: str
    score: Score | None
    error: str = ""


@dataclass(frozen=True)
class Repeated:
    """One recorded call, run twice more on equal files and notes. `declared`: the tool says it is deterministic.

    `again` has what came back: less than two where the sandbox failed, which says nothing of the tool.
    """

    tool: str
    arguments: Mapping[str, Any]
    declared: bool
    recorded: str
    again: tuple[str, ...]


@dataclass(frozen=True)
class Evidence:
    """All runs of one environment. `unearned`: gate -> agent -> its run; `reference`: noise -> runs of the slipping
    policy, several a task.

    `splits` and `splits_again` are the same call of the generator, made twice.
    """

    splits: Mapping[str, Sequence[Task]]
    splits_again: Mapping[str, Sequence[Task]]
    gold: Recorded
    gold_again: Recorded
    random: Recorded
    random_again: Recorded
    unearned: Mapping[str, Mapping[str, Unearned]]
    reference: Mapping[float, Recorded]
    fuzzed: Sequence[Fuzzed]
    repeated: Sequence[Repeated]
    tools: Sequence[str]  # names of all that may be called


def all_gates(evidence: Evidence) -> list[Gate]:
    return [
        splits_are_apart(evidence.splits, evidence.splits_again),
        gold_scores_one(evidence.gold),
        *(earns_nothing(name, runs) for name, runs in evidence.unearned.items()),
        runs_again_alike([(evidence.gold, evidence.gold_again), (evidence.random, evidence.random_again)]),
        enough_between(evidence.reference),
        grader_stands(evidence.fuzzed),
        tools_are_steady(evidence.repeated, evidence.tools),
    ]


def splits_are_apart(splits: Mapping[str, Sequence[Task]], again: Mapping[str, Sequence[Task]]) -> Gate:
    """No task, and no prompt with the same hidden part, is in two splits; the same seed gives the same tasks."""
    if other := [split for split in splits if list(splits[split]) != list(again[split])]:
        return Gate("splits", False, "unsteady", f"generated twice with one seed, {', '.join(other)} differ")
    owner: dict[str, str] = {}
    shared, doubled = [], []
    for split, tasks in splits.items():
        for task in tasks:
            body = repr((task.messages, sorted(task.hidden.items(), key=str), task.answer))
            for key in (task.id, body):
                if owner.setdefault(key, split) != split:
                    shared.append(f"{task.id[:8]} in {owner[key]} and {split}")
        if len({task.id for task in tasks}) < len(tasks):
            doubled.append(split)
    if empty := [split for split, tasks in splits.items() if not tasks]:
        return Gate("splits", False, "no tasks", f"nothing was generated for {', '.join(empty)}")
    sizes = ", ".join(f"{split} {len(tasks)}" for split, tasks in splits.items())
    if doubled:
        return Gate("splits", False, "doubled", f"one id twice in {', '.join(doubled)}")
    if shared:
        return Gate("splits", False, f"{len(shared)} shared", "; ".join(shared[:3]))
    return Gate("splits", True, "apart", f"{sizes}; none shared, all alike when generated again")


def gold_scores_one(gold: Recorded) -> Gate:
    """Each gold trace is graded and worth exactly 1: the task can be solved, and no more than solved."""
    short = [
        f"task {task.id[:8]}: {score.reason or score.value} ({score.evidence[:120]})"
        for task, score in zip(gold.tasks, gold.scores, strict=True)
        if score.value is None or abs(score.value - 1) > 1e-9
    ]
    mean = sum(score.value or 0.0 for score in gold.scores) / max(1, len(gold.scores))
    if not gold.scores:
        return Gate("gold", False, "no tasks", "nothing was run")
    found = f"{len(gold.scores) - len(short)} of {len(gold.scores)} gold traces score 1"
    return Gate("gold", not short, f"{mean:.2f}", "; ".join([found, *short[:2]]))


def earns_nothing(name: str, agents: Mapping[str, Unearned]) -> Gate:
    """Each agent's run is worth little, and its tasks are enough to tell."""
    if not agents:
        return Gate(name, False, "none", "nothing was run")
    found = [_finding(agent, unearned) for agent, unearned in agents.items()]
    found.sort(key=lambda one: (WORST_FIRST.index(one.worth), -one.mean))
    passed = all(one.worth == "little" for one in found)
    highest = max(one.mean for one in found)
    # One sentence for all agents: they were refused the same tasks.
    note = next((f"there are no more tasks: {one.no_more}" for one in agents.values() if one.no_more), "")
    said = ", ".join(one.words for one in found)
    return Gate(name, passed, f"{highest:.2f}", f"{said}; {note}" if note else said, note)


@dataclass(frozen=True)
class _Finding:
    worth: Worth
    mean: float
    words: str


def _finding(agent: str, unearned: Unearned) -> _Finding:
    run, earned = unearned.run, earned_by_task(unearned.run)
    if not earned:
        return _Finding("much", math.inf, f"{agent}: not one of {len(run.scores)} traces could be graded")
    every = bool(unearned.no_more) and len(earned) == len({task.id for task in run.tasks})
    worth = worth_of_all(earned) if every else worth_of_some(earned)
    mean = _mean(earned)
    words = f"{agent} {mean:.2f} in {'all ' if every else ''}{len(earned)} tasks"
    words += f", too near to {NEAR_ZERO} to tell" if worth == "unclear" else ""
    pairs = zip(run.tasks, run.scores, strict=True)
    words += next((f" (paid: task {task.id[:8]})" for task, score in pairs if (score.value or 0) > HIGH), "")
    below = any((score.value or 0) < 0 for score in run.scores)
    words += " (rewards below 0 count as 0)" if below and mean > 0 else ""
    return _Finding(worth, mean, words)


def earned_by_task(run: Recorded) -> dict[str, float]:
    """task id -> the mean reward of its graded traces, each cut to [0, 1].

    A reward below 0 counts as 0: what some tasks cost hides nothing that others pay. The traces of one task are one
    piece of evidence: silence, and most cheats, ignore the seed, and do the same each time.
    """
    rewards: dict[str, list[float]] = {}
    for task, score in zip(run.tasks, run.scores, strict=True):
        if score.value is not None:
            rewards.setdefault(task.id, []).append(min(max(score.value, 0.0), 1.0))
    return {task: math.fsum(values) / len(values) for task, values in rewards.items()}


def worth_of_all(earned: Mapping[str, float]) -> Worth:
    """Of a run on all tasks that there are: their mean is no estimate, so it alone decides."""
    return "little" if _mean(earned) <= NEAR_ZERO + SLACK else "much"


def worth_of_some(earned: Mapping[str, float]) -> Worth:
    """Of a run on tasks that stand for many others: "unclear" where more of them must tell.

    Little where the mean is NEAR_ZERO at most and, were each task paid with probability TOO_MUCH, so few would be paid
    with probability DOUBT at most; much where, with NEAR_ZERO, so many would: tails of the binomial distribution.
    Partial rewards add up.
    """
    paid, tasks = math.fsum(earned.values()), len(earned)
    near = _mean(earned) <= NEAR_ZERO + SLACK
    if near and _at_most(math.ceil(paid - SLACK), tasks, TOO_MUCH) <= DOUBT:
        return "little"
    return "much" if 1 - _at_most(math.floor(paid + SLACK) - 1, tasks, NEAR_ZERO) <= DOUBT else "unclear"


def _mean(earned: Mapping[str, float]) -> float:
    return math.fsum(earned.values()) / len(earned)


def _at_most(paid: int, tasks: int, share: float) -> float:
    """The probability that at most `paid` of `tasks` are paid where each is with probability `share`."""
    logs = (
        math.lgamma(tasks + 1) - math.lgamma(k + 1) - math.lgamma(tasks - k + 1)
        + k * math.log(share) + (tasks - k) * math.log(1 - share)
        for k in range(paid + 1)
    )  # fmt: skip
    return math.fsum(map(math.exp, logs))


def runs_again_alike(pairs: Sequence[tuple[Recorded, Recorded]]) -> Gate:
    """Running the same policy again gives traces and scores of equal hash, but where a tool says that it may differ."""
    total, excused, other = 0, 0, []
    for first, second in pairs:
        for task, a, b, old, new in zip(
            first.tasks, first.traces, second.traces, first.scores, second.scores, strict=True
        ):
            total += 1
            if trace_hash(a.to_json(), old) == trace_hash(b.to_json(), new):
                continue
            if any(node.use and not node.use.deterministic for node in a.nodes):
                excused += 1
            else:
                other.append(f"task {task.id[:8]}: {_first_other(a.nodes, b.nodes)}")
    said = f"{total - len(other) - excused} of {total} runs have equal hashes"
    said += f", {excused} differ where a tool says it may" if excused else ""
    return Gate("re-run", not other and total > 0, f"{total - len(other)}/{total}", "; ".join([said, *other[:2]]))


def enough_between(reference: Mapping[float, Recorded]) -> Gate:
    """At some noise, enough tasks are solved sometimes and not always by the slipping policy."""
    best, said = 0.0, []
    for noise, run in sorted(reference.items()):
        rates = list(pass_rates(run).values())
        between = sum(0 < rate < 1 for rate in rates) / max(1, len(rates))
        best = max(best, between)
        counts = histogram(rates)
        said.append(f"noise {noise:g}: {between:.0%} between; pass rate 0 | fifths | 1: {' '.join(map(str, counts))}")
    return Gate("difficulty", best >= ENOUGH_BETWEEN, f"{best:.0%}", "; ".join(said))


def grader_stands(fuzzed: Sequence[Fuzzed]) -> Gate:
    """Hostile traces neither make the grader raise (a crash that it caught counts), nor are they paid."""
    raised = [f"{case.what}: {case.error[-150:]}" for case in fuzzed if case.error]
    paid = [
        f"{case.what} got {case.score.value:.2f}" for case in fuzzed if case.score and (case.score.value or 0) > HIGH
    ]
    bad = [*raised, *paid]
    said = f"{len(fuzzed)} hostile traces, {len(raised)} raised, {len(paid)} paid"
    return Gate("fuzz", not bad and bool(fuzzed), f"{len(bad)}/{len(fuzzed)}", "; ".join([said, *bad[:3]]))


def tools_are_steady(repeated: Sequence[Repeated], tools: Sequence[str]) -> Gate:
    """A call on equal files and notes gives what was recorded, twice more; tools that say they may differ are named.

    Where there are tools and no call could be run again, nothing is known of them, and that does not pass.
    """
    if not tools:
        return Gate("tools", True, "no tools", "there is no tool that could be unsteady")
    flaky: dict[str, str] = {}
    loose: set[str] = set()
    seen = [case for case in repeated if len(case.again) == 2]
    for case in seen:
        other = next((text for text in case.again if text != case.recorded), None)
        if other is not None and case.declared:
            asked = f"{case.tool}({dict(case.arguments)!r:.60})"
            flaky.setdefault(case.tool, f"{asked}: {case.recorded:.60}, then {other:.60}")
        elif other is not None:
            loose.add(case.tool)
    said = f"{len(seen)} calls run twice more"
    said += f", {len(repeated) - len(seen)} whose sandbox failed" if len(seen) < len(repeated) else ""
    said += f"; may differ, and says so: {', '.join(sorted(loose))}" if loose else ""
    figure = f"{len(flaky)} flaky" if seen else "no calls"
    return Gate("tools", bool(seen) and not flaky, figure, "; ".join([said, *flaky.values()]))


def pass_rates(run: Recorded) -> dict[str, float]:
    """task id -> share of its graded traces with outcome 1."""
    outcomes: dict[str, list[float]] = {}
    for task, score in zip(run.tasks, run.scores, strict=True):
        if score.value is not None:
            outcomes.setdefault(task.id, []).append(score.components.get("outcome", score.value))
    return {task: sum(value >= 1 for value in values) / len(values) for task, values in outcomes.items()}


def histogram(rates: Sequence[float]) -> list[int]:
    """Counts of: exactly 0, the open interval (0, 1) in `BINS` equal parts, exactly 1."""
    counts = [0] * (BINS + 2)
    for rate in rates:
        counts[0 if rate <= 0 else BINS + 1 if rate >= 1 else 1 + min(BINS - 1, int(rate * BINS))] += 1
    return counts


def trace_hash(trace: str, score: Score) -> str:
    """Of a trace's JSON and its score."""
    return hashlib.sha256(f"{trace}\n{score!r}".encode("utf-8", "surrogatepass")).hexdigest()


def _first_other(first: Sequence[Any], second: Sequence[Any]) -> str:
    for place, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return f"message {place}: {a.message.content!r:.60}, then {b.message.content!r:.60}"
    return "other lengths, facts or scores"
