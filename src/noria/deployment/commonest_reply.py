"""Is a gain that of one reply? A model that says "delivery" to everything beats one that says nothing, and has learnt
to tell no two tasks apart.

A model that is right everywhere gives no reply more often than the commonest gold answer. So a reply is overused if it
is given more often than that beyond doubt; and the gain is not of this reply alone if beyond doubt a good part of it is
left with the reply counted as wrong, before and after. It takes both to doubt a gain: tasks may have few answers
(yes, no), and a model may lean to one reply and yet have learnt the others. Whether a grader passed the reply is not
asked: one that passes the same words everywhere would hide what is looked for.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from noria.evals.statistics import Interval, paired_difference, superior, wilson

# All three are chosen, not fitted. A model that errs leans to some reply: this much of the replies is no collapse.
MARGIN = 0.1
# Where gold answers are missing, it is not known how often one reply may be right: only nearly always is too often.
NEARLY_ALL = 0.8
# Of the gain. A few lucky hits beside a constant reply are above zero beyond doubt once tasks are many. Where half of
# the tasks are "no", a model that says "yes" to the rest reaches a quarter by seeing a third of the noes.
LEAST_LEFT = 0.25

Replies = Mapping[str, Sequence[tuple[str, bool]]]  # task -> (reply, whether it was right) of each sample
Credit = Callable[[str, bool], float]  # what a reply is worth, as it was said and graded


@dataclass(frozen=True)
class CommonestReply:
    """`share` of the replies after training, over n tasks; `gold_share` of the tasks have the commonest gold answer,
    None where a task has none; `left` of the `gain` of accuracy remains with this reply counted as wrong, and `enough`
    is how much more that is than LEAST_LEFT of it. All by paired tasks."""

    reply: str
    share: Interval
    share_before: float
    gold_share: float | None
    gain: Interval
    left: Interval
    enough: Interval

    @property
    def overused(self) -> bool:
        return self.share.low > (NEARLY_ALL if self.gold_share is None else self.gold_share + MARGIN)

    @property
    def may_be_the_gain(self) -> bool:
        return self.overused and not superior(self.enough)


def commonest_reply(after: Replies, before: Replies, gold: Mapping[str, str], level: float = 0.95) -> CommonestReply:
    """Of the replies of a trained model, beside those before training. Case, outer blanks and a full stop do
    not count, in replies and gold answers. A task weighs as one, however many samples it has. Raises ValueError where
    no task has replies of both."""
    shared = sorted(after.keys() & before.keys())
    counts = Counter(_plain(said) for task in shared for said, _ in after[task])
    if not counts:
        raise ValueError("no task has replies of both models: there is nothing to compare")
    commonest = min(counts, key=lambda reply: (-counts[reply], reply))

    def by_task(replies: Replies, credit: Credit) -> list[float]:
        return [statistics.fmean(credit(_plain(said), right) for said, right in replies[task]) for task in shared]

    def gained(credit: Credit) -> Interval:
        return paired_difference(by_task(after, credit), by_task(before, credit), level)

    share, share_before = (
        statistics.fmean(by_task(replies, lambda said, _: said == commonest)) for replies in (after, before)
    )
    answers = Counter(_plain(gold[task]) for task in shared if task in gold)
    return CommonestReply(
        reply=commonest,
        share=wilson(round(share * len(shared)), len(shared), level),
        share_before=share_before,
        gold_share=max(answers.values()) / len(shared) if answers.total() == len(shared) else None,
        gain=gained(lambda _, right: right),
        left=gained(lambda said, right: right and said != commonest),
        enough=gained(lambda said, right: right * ((said != commonest) - LEAST_LEFT)),
    )


def _plain(text: str) -> str:
    return text.strip().rstrip(".").casefold()
