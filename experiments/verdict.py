"""How an experiment ends: what was claimed, what came out over the seeds, and a picture."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from noria.evals.statistics import Interval, mean_interval

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"


Outcome = Literal["reproduced", "absent", "reversed", "untried"]


@dataclass(frozen=True)
class Verdict:
    """`effect` is the mean over seeds of what the claim says is above zero, with a t interval."""

    experiment: str
    claim: str
    verdict: Outcome
    effect: Interval
    unit: str
    details: Mapping[str, object]


def judge(
    experiment: str,
    claim: str,
    effects: Sequence[float],
    unit: str,
    premise: Sequence[float] | None = None,
    **details: object,
) -> Verdict:
    """One effect a seed, positive where the claim holds. An interval that contains zero is no effect.

    `premise`, one a seed, is what must be above zero for the claim to be tried at all.
    """
    effect = mean_interval(effects)
    verdict: Outcome = "absent"
    if premise is not None and mean_interval(premise).low <= 0:
        verdict = "untried"
    elif effect.low > 0:
        verdict = "reproduced"
    elif effect.high < 0:
        verdict = "reversed"
    return Verdict(experiment, claim, verdict, effect, unit, details)


def arguments(name: str, description: str | None, seeds: int = 5) -> argparse.Namespace:
    return arguments_parser(name, description, seeds).parse_args()


def arguments_parser(name: str, description: str | None, seeds: int = 5) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{name}", description=description)
    parser.add_argument("--seeds", type=int, default=seeds, help=f"how many; {seeds} for a verdict")
    parser.add_argument("--store", default="store", help="where the text of the nano recipe lies, or is made")
    parser.add_argument("--threads", type=int, default=2, help="1 where other work shares the machine")
    parser.add_argument("--json", action="store_true", help="the verdict as one JSON object, in place of lines")
    return parser


def show(found: Verdict, as_json: bool) -> None:
    effect = found.effect
    if as_json:
        print(json.dumps({**asdict(found), "effect": effect.as_json()}))
        return
    print(
        f"{found.claim}\n{found.verdict}: {effect.estimate:+.4f} [{effect.low:+.4f}, {effect.high:+.4f}] {found.unit}, "
        f"n = {effect.n} seeds"
    )
    for name, value in found.details.items():
        print(f"  {name}: {value}")


def picture(
    name: str, series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str, log_x: bool = False
) -> Path:
    """Lines by name in docs/pictures/NAME.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for label, (xs, ys) in series.items():
        axes.plot(xs, ys, marker="o", markersize=3, linewidth=1.2, label=label)
    axes.set(xlabel=x, ylabel=y, xscale="log" if log_x else "linear")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    PICTURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURES / f"{name}.png", dpi=110)
    pyplot.close(figure)
    return PICTURES / f"{name}.png"
