"""Reinforcement learning as it goes, for the terminal: its numbers with their course, and a few replies to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from noria.studio.training_metrics import PROBE

if TYPE_CHECKING:
    from noria.artifacts import Store

SHOWN = (
    ("reward", "reward"),
    ("heldout", PROBE),
    ("reply_tokens", "reply length, tokens"),
    ("kl", "KL to the start, nats a token"),
    ("entropy", "entropy, nats a token"),
)
BARS = "▁▂▃▄▅▆▇█"
COURSE = 40  # points of a course


def training_view(store: Store, key: str) -> RenderableType:
    """What the run database knows of the training whose artifact will have `key`; nothing before its first step."""
    if not key or not store.exists():
        return Text()
    lines = [
        Text.assemble((f"  {title:<30}", "dim"), (f"{curve[-1][1]:>8.3f}  ", "bold"), course([v for _, v in curve]))
        for name, title in SHOWN
        if (curve := [(step, value) for step, value in store.runs.curve(key, name) if value is not None])
    ]
    return Group(*lines, *_samples(store, key)) if lines else Text()


def course(values: Sequence[float]) -> str:
    """The last values as a row of bars between their own least and greatest."""
    shown = values[-COURSE:]
    least, most = min(shown), max(shown)
    span = (most - least) or 1.0
    return "".join(BARS[round((value - least) / span * (len(BARS) - 1))] for value in shown)


def _samples(store: Store, key: str) -> list[Text]:
    rows = store.runs.steps_of_key(key)
    if not rows:
        return []
    told = [event for event in store.runs.events(rows[-1]["run"]) if event["kind"] == "samples"]
    lines = []
    for sample in told[-1]["data"]["samples"] if told else ():
        value = "failed" if sample["value"] is None else f"{sample['value']:.2f}"
        line = Text.assemble(
            (f"  {value:>6}  ", "bold"), (_one_line(sample["prompt"]), "dim"), "  ->  ", _one_line(sample["reply"])
        )
        line.no_wrap, line.overflow = True, "ellipsis"
        lines.append(line)
    return lines


def _one_line(text: str) -> str:
    return " ".join(text.split())[-80:]
