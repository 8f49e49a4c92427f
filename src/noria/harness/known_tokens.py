"""What is known of a view's tokens before it is sampled from, and what must be known of a reply's to keep a budget.

A local model tells its tokens; an endpoint only counts them, with the reply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from noria.harness.budget import Budget
from noria.harness.policy import ModelFailed, Prompt, Reply, Said
from noria.types import ModelCall, Node

NOT_COUNTED = (
    "the endpoint's reply has no `usage`, so a budget of `context` or `tokens` can't be kept: give one without these "
    "two, or have the server count"
)


def extended(
    shown: tuple[int, ...], nodes: Sequence[Node], saw: Mapping[int, tuple[int, ...]]
) -> tuple[int, ModelCall] | None:
    """How much of the view `shown` is what the model saw last and its reply to it, and that call; None where it is not.

    `saw`: sampled node -> the nodes of its view.
    """
    for count in range(len(shown), 0, -1):
        place = shown[count - 1]
        call = nodes[place].call
        if call is not None:
            return (count, call) if saw.get(place) == shown[: count - 1] else None
    return None


def tokens_said(seen: tuple[int, ModelCall] | None) -> Said | None:
    """The part of a view that extends `seen` whose tokens are known."""
    if seen is None or seen[1].endpoint is not None:
        return None
    count, call = seen
    return Said(count, (*call.prompt_ids, *call.token_ids))


def prompt_tokens(prompt: Prompt, seen: tuple[int, ModelCall] | None) -> int:
    """Of a view as it was laid out. Of an endpoint's at least as many: those of the last prompt, where this view
    extends it; thinking that was counted in the reply need not be sent back."""
    if prompt.ids or seen is None:
        return len(prompt.ids)
    return seen[1].prompt_tokens


def counted(reply: Reply | ModelFailed, budget: Budget) -> Reply | ModelFailed:
    """`reply`, or why `budget` can't be kept with it."""
    if isinstance(reply, Reply) and not reply.call.counted and budget.needs_counts:
        return ModelFailed(NOT_COUNTED)
    return reply
