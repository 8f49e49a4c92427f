"""Release, reject or inconclusive: a pure function of per-item results, the incumbent's results and the rules.

A candidate is releasable if the primary metric is superior (or, where the rules say so, non-inferior) to the
incumbent's on the same items, no slice of it is worse beyond doubt, and every guardrail is non-inferior; where replies
are known, a gain that may be of one reply alone is no proof (commonest_reply.py). Besides, every metric must be above
its floor, whatever the incumbent is like: without an incumbent the floors alone decide, and with one they keep small
steps down, each within its margin, from adding up. A candidate is rejected if one of these is false beyond doubt;
otherwise the data can't tell, and that is a verdict of its own.

Multiplicity. Several candidates are several chances to be lucky: their primary p-values are adjusted together (Holm
1979). So are the slices of one candidate, where a regression is looked for. Guardrails must all pass, which needs no
adjustment (intersection-union test, Berger 1982); nor do floors.

Among releasable candidates the one with the best primary metric wins, unless a cheaper one is non-inferior to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from noria.deployment.commonest_reply import LEAST_LEFT, NEARLY_ALL, Replies, commonest_reply
from noria.evals.statistics import (
    Interval,
    holm,
    inferior,
    mean_interval,
    non_inferior,
    p_superior,
    paired_difference,
    superior,
    wilson,
)

Decision = Literal["release", "reject", "inconclusive"]
Outcome = Literal["pass", "fail", "unclear"]
REPLY = "commonest reply"


class Guardrail(BaseModel):
    """A metric that may not get worse. Values lie in [0, 1]; higher is better."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str
    margin: float = Field(default=0.05, gt=0, le=1, description="how much worse than the incumbent is still acceptable")
    floor: float = Field(default=0.0, ge=0, le=1, description="the lower bound must exceed this")


class Rules(BaseModel):
    """What a release needs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    primary: str = Field(default="correct", description="the metric that a release is for")
    primary_test: Literal["superior", "non_inferior"] = "superior"
    primary_margin: float = Field(
        default=0.02, gt=0, le=1, description="for non_inferior, and for preferring a cheaper one"
    )
    primary_floor: float = Field(default=0.1, ge=0, le=1, description="the lower bound must exceed this")
    guardrails: tuple[Guardrail, ...] = ()
    level: float = Field(default=0.95, gt=0.5, lt=1, description="two-sided confidence; tests use half of the rest")
    cost: str = Field(default="weight_bytes", description="the cost by which equals are told apart")


@dataclass(frozen=True)
class Candidate:
    """Results of one model: metric -> item -> value in [0, 1], None where the grading failed.

    `slices` groups the items of the primary metric; `replies` to them and their `gold` answers are empty where what was
    said is not looked at.
    """

    name: str
    scores: Mapping[str, Mapping[str, float | None]]
    slices: Mapping[str, str] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)
    replies: Replies = field(default_factory=dict)
    gold: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """One test. `interval` is the paired difference to the incumbent, or the metric itself against a floor or gold."""

    metric: str
    against: str
    interval: Interval
    outcome: Outcome
    words: str
    p_value: float | None = None
    adjusted_p: float | None = None


@dataclass(frozen=True)
class Assessment:
    """All checks of one candidate and what they come to."""

    name: str
    decision: Decision
    primary: Interval
    checks: tuple[Check, ...]
    costs: Mapping[str, float]

    @property
    def reasons(self) -> list[str]:
        wanted = {"release": ("pass",), "reject": ("fail",), "inconclusive": ("unclear",)}[self.decision]
        return [check.words for check in self.checks if check.outcome in wanted]


@dataclass(frozen=True)
class Verdict:
    """`chosen` is what is released; without a release, the best candidate, which is not."""

    decision: Decision
    chosen: str
    reasons: tuple[str, ...]
    assessments: tuple[Assessment, ...]


def decide(candidates: Sequence[Candidate], incumbent: Candidate | None, rules: Rules) -> Verdict:
    """The verdict. Raises ValueError where there is no candidate or one lacks a metric that the rules name."""
    if not candidates:
        raise ValueError("a verdict needs at least one candidate")
    for candidate in (*candidates, *((incumbent,) if incumbent else ())):
        _require_metrics(candidate, rules)
    primary = _primary_checks(candidates, incumbent, rules) if incumbent else {}
    assessments = []
    for candidate in candidates:
        checks = _floor_checks(candidate, rules)
        if incumbent:
            better = primary[candidate.name]
            claims_gain = rules.primary_test == "superior" and better.outcome == "pass"
            told = _reply_checks(candidate, incumbent, claims_gain, rules.level)
            checks = [better, *told, *_guardrail_checks(candidate, incumbent, rules), *checks]
            checks += _slice_checks(candidate, incumbent, rules)
        decision = _decision([check.outcome for check in checks])
        summary = _interval(_known(candidate, rules.primary), rules.level)
        assessments.append(Assessment(candidate.name, decision, summary, tuple(checks), candidate.costs))
    verdict = _choose(candidates, assessments, rules)
    chosen = next(one for one in candidates if one.name == verdict.chosen)
    if incumbent and chosen.replies:
        return _with_source_of_gain(verdict, chosen, incumbent, rules)
    return verdict


def _require_metrics(candidate: Candidate, rules: Rules) -> None:
    for metric in (rules.primary, *(guardrail.metric for guardrail in rules.guardrails)):
        if not _known(candidate, metric):
            known = ", ".join(sorted(candidate.scores)) or "none"
            raise ValueError(f"{candidate.name} has no graded item of metric {metric!r}; it has: {known}")


def _known(candidate: Candidate, metric: str) -> dict[str, float]:
    return {item: value for item, value in candidate.scores.get(metric, {}).items() if value is not None}


def _pairs(
    new: Candidate, old: Candidate, metric: str, items: Set[str] | None = None
) -> tuple[list[float], list[float]]:
    """Values of both on the items that both have; an item whose grading failed for one says nothing about either."""
    ours, theirs = _known(new, metric), _known(old, metric)
    shared = [item for item in sorted(ours) if item in theirs and (items is None or item in items)]
    return [ours[item] for item in shared], [theirs[item] for item in shared]


def _interval(values: Mapping[str, float], level: float) -> Interval:
    numbers = list(values.values())
    if all(value in (0.0, 1.0) for value in numbers):
        return wilson(round(sum(numbers)), len(numbers), level)
    return mean_interval(numbers, level)


def _alpha(rules: Rules) -> float:
    return (1 - rules.level) / 2


def _primary_checks(candidates: Sequence[Candidate], incumbent: Candidate, rules: Rules) -> dict[str, Check]:
    margin = 0.0 if rules.primary_test == "superior" else rules.primary_margin
    pairs = {one.name: _pairs(one, incumbent, rules.primary) for one in candidates}
    p_values = {name: p_superior(new, old, margin) for name, (new, old) in pairs.items()}
    adjusted = holm(p_values)
    checks = {}
    for name, (new, old) in pairs.items():
        difference = paired_difference(new, old, rules.level)
        passed = adjusted[name] < _alpha(rules)
        failed = difference.high < -margin
        outcome: Outcome = "pass" if passed else "fail" if failed else "unclear"
        wanted = "better than" if not margin else f"at most {margin:.3f} worse than"
        verb = {"pass": "is", "fail": "is not", "unclear": "is not shown to be"}[outcome]
        words = f"{rules.primary} {verb} {wanted} the incumbent: {_spell(difference)}"
        words += f", Holm-adjusted p = {adjusted[name]:.3g}"
        checks[name] = Check(rules.primary, "incumbent", difference, outcome, words, p_values[name], adjusted[name])
    return checks


def _reply_checks(candidate: Candidate, incumbent: Candidate, claims_gain: bool, level: float) -> list[Check]:
    """None where replies are not looked at. Only a gain that is claimed can be doubted: a model that is no better, or
    need not be, may say what it says as often as before."""
    if not candidate.replies:
        return []
    found = commonest_reply(candidate.replies, incumbent.replies, candidate.gold, level)
    words = f"{found.reply!r:.60} is {_spell(found.share)} of the replies (before training {found.share_before:.3f})"
    if found.gold_share is None:
        words += f"; gold answers are missing, so that only a reply to more than {NEARLY_ALL:.3f} could be told"
    else:
        words += f"; no gold answer is that of more than {found.gold_share:.3f} of the tasks"
    if not claims_gain:
        return [Check(REPLY, "gold answers", found.share, "pass", f"{REPLY}, no gain being claimed: {words}")]
    if found.overused:
        words += f"; counting it as wrong leaves {_spell(found.left)} of the gain of {found.gain.estimate:.3f}"
        words += f", of which {LEAST_LEFT:.0%} is asked"
    outcome: Outcome = "unclear" if found.may_be_the_gain else "pass"
    verb = {"pass": "is not seen to be that of one reply", "unclear": "may be that of one reply alone"}[outcome]
    return [Check(REPLY, "gold answers", found.share, outcome, f"the gain {verb}: {words}")]


def _guardrail_checks(candidate: Candidate, incumbent: Candidate, rules: Rules) -> list[Check]:
    checks = []
    for rail in rules.guardrails:
        difference = paired_difference(*_pairs(candidate, incumbent, rail.metric), rules.level)
        outcome: Outcome = "unclear"
        if non_inferior(difference, rail.margin):
            outcome = "pass"
        elif inferior(difference, rail.margin):
            outcome = "fail"
        verb = {"pass": "is at most", "fail": "is more than", "unclear": "may be more than"}[outcome]
        words = f"guardrail {rail.metric} {verb} {rail.margin:.3f} worse than the incumbent: {_spell(difference)}"
        checks.append(Check(rail.metric, "incumbent", difference, outcome, words))
    return checks


def _slice_checks(candidate: Candidate, incumbent: Candidate, rules: Rules) -> list[Check]:
    """One check a slice of the primary metric: worse beyond doubt is a failure, anything else passes."""
    slices = _items_by_slice(candidate)
    pairs = {name: _pairs(candidate, incumbent, rules.primary, items) for name, items in slices.items()}
    pairs = {name: pair for name, pair in pairs.items() if len(pair[0]) >= 2}
    p_worse = {name: p_superior(old, new) for name, (new, old) in pairs.items()}
    adjusted = holm(p_worse)
    checks = []
    for name, (new, old) in pairs.items():
        difference = paired_difference(new, old, rules.level)
        worse = adjusted[name] < _alpha(rules)
        verb = "is worse than" if worse else "shows no regression from"
        words = f"slice {name} {verb} the incumbent: {_spell(difference)}, Holm-adjusted p = {adjusted[name]:.3g}"
        metric = f"{rules.primary}/{name}"
        outcome: Outcome = "fail" if worse else "pass"
        checks.append(Check(metric, "incumbent", difference, outcome, words, p_worse[name], adjusted[name]))
    return checks


def _items_by_slice(candidate: Candidate) -> dict[str, set[str]]:
    slices: dict[str, set[str]] = {}
    for item, name in sorted(candidate.slices.items()):
        slices.setdefault(name, set()).add(item)
    return slices


def _with_source_of_gain(verdict: Verdict, chosen: Candidate, incumbent: Candidate, rules: Rules) -> Verdict:
    """A doubt about the replies is told whatever else decided, and so is a gain of one slice."""
    checks = next(one.checks for one in verdict.assessments if one.name == chosen.name)
    doubts = [check.words for check in checks if check.metric == REPLY and check.outcome == "unclear"]
    told = dict.fromkeys([*verdict.reasons, *doubts, *_gain_of_one_slice(chosen, incumbent, rules)])
    return replace(verdict, reasons=tuple(told))


def _gain_of_one_slice(candidate: Candidate, incumbent: Candidate, rules: Rules) -> list[str]:
    """Words for the reader, where one slice gained beyond doubt, and all others together nothing that is shown and less
    than it beyond doubt. No test: a gain on some of the tasks is a gain."""
    for name, items in _items_by_slice(candidate).items():
        own, rest = (
            paired_difference(*_pairs(candidate, incumbent, rules.primary, chosen), rules.level)
            for chosen in (items, candidate.slices.keys() - items)
        )
        if superior(own) and not superior(rest) and rest.high < own.low:
            return [f"the gain is seen in family {name} alone: {_spell(own)}; all others together: {_spell(rest)}"]
    return []


def _floor_checks(candidate: Candidate, rules: Rules) -> list[Check]:
    floors = [(rules.primary, rules.primary_floor), *((rail.metric, rail.floor) for rail in rules.guardrails)]
    return [_against_floor(candidate, metric, floor, rules) for metric, floor in floors]


def _against_floor(candidate: Candidate, metric: str, floor: float, rules: Rules) -> Check:
    interval = _interval(_known(candidate, metric), rules.level)
    # A floor of 0 asks for nothing: a rate of exactly 0 has its lower bound there.
    if interval.low > floor or floor == 0:
        outcome: Outcome = "pass"
    else:
        outcome = "fail" if interval.high < floor else "unclear"
    verb = {"pass": "is above", "fail": "is below", "unclear": "is not shown to be above"}[outcome]
    words = f"{metric} {verb} its floor of {floor:.3f}: {_spell(interval)}"
    return Check(metric, "floor", interval, outcome, words)


def _decision(outcomes: Sequence[Outcome]) -> Decision:
    if "fail" in outcomes:
        return "reject"
    return "inconclusive" if "unclear" in outcomes else "release"


def _choose(candidates: Sequence[Candidate], assessments: Sequence[Assessment], rules: Rules) -> Verdict:
    decisions = {one.decision for one in assessments}
    decision: Decision = (
        "release" if "release" in decisions else "inconclusive" if "inconclusive" in decisions else "reject"
    )
    eligible = [one for one in assessments if one.decision == decision]
    best = max(eligible, key=lambda one: (one.primary.estimate, -_cost(one, rules)))
    reasons = list(best.reasons)
    chosen = best
    if decision == "release":
        by_name = {candidate.name: candidate for candidate in candidates}
        chosen, why = _cheaper(best, eligible, by_name, rules)
        reasons = [*chosen.reasons, *why]
    return Verdict(decision, chosen.name, (f"{chosen.name}: {decision}", *reasons), tuple(assessments))


def _cheaper(
    best: Assessment, eligible: Sequence[Assessment], by_name: Mapping[str, Candidate], rules: Rules
) -> tuple[Assessment, list[str]]:
    for one in sorted(eligible, key=lambda one: (_cost(one, rules), one.name)):
        if _cost(one, rules) >= _cost(best, rules):
            break
        difference = paired_difference(*_pairs(by_name[one.name], by_name[best.name], rules.primary), rules.level)
        if non_inferior(difference, rules.primary_margin):
            return one, [
                f"{one.name} is taken instead of {best.name}: {rules.cost} {_cost(one, rules):.4g} instead of "
                f"{_cost(best, rules):.4g}, and {rules.primary} at most {rules.primary_margin:.3f} worse: "
                f"{_spell(difference)}"
            ]
    return best, []


def _cost(assessment: Assessment, rules: Rules) -> float:
    return assessment.costs.get(rules.cost, math.inf)


def _spell(interval: Interval) -> str:
    return f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}], n = {interval.n}"
