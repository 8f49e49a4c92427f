"""The runs of a store; two of them side by side: which steps are the same artifact, how the metrics of others ended."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noria.artifacts.errors import Unknown
from noria.studio.output import console, print_json
from noria.studio.training_metrics import end, shown_as, written

if TYPE_CHECKING:
    from noria.artifacts.runs import RunDatabase


@dataclass(frozen=True)
class MetricPair:
    """How one metric of one step ended in two runs; None where a run did not log it."""

    step: str
    metric: str
    left: float | None
    right: float | None
    same_artifact: bool


def compare(runs: RunDatabase, left: int, right: int) -> list[MetricPair]:
    """Every metric of every step that both runs have. Raises Unknown for a run that the store does not know."""
    known = {row["run"] for row in runs.runs()}
    for run in (left, right):
        if run not in known:
            raise Unknown(f"there is no run {run}; the store has runs {', '.join(map(str, sorted(known))) or 'none'}")
    keys = [{row["step_name"]: row["key"] for row in runs.steps(run)} for run in (left, right)]
    pairs = []
    for step in (name for name in keys[0] if name in keys[1]):
        own, other = keys[0][step], keys[1][step]
        for metric in sorted({*runs.metric_names(own), *runs.metric_names(other)}):
            pairs.append(MetricPair(step, metric, _end(runs, own, metric), _end(runs, other, metric), own == other))
    return pairs


def _end(runs: RunDatabase, key: str, metric: str) -> float | None:
    return end(metric, [value for _, value in runs.curve(key, metric)])


def _difference(pair: MetricPair) -> str:
    if pair.same_artifact:
        return "same artifact"
    if pair.left is None or pair.right is None:
        return "-"
    if pair.metric.endswith("_bytes"):
        return f"{'+' if pair.right >= pair.left else ''}{written(pair.metric, pair.right - pair.left)}"
    return f"{pair.right - pair.left:+.4g}"


runs_app = typer.Typer(help="Look at runs.", no_args_is_help=True, rich_markup_mode=None)
StoreOption = Annotated[
    Path | None,
    typer.Option("--store", envvar="NORIA_STORE", help="Folder of the artifacts; ./store if not given."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value for scripts.")]


@runs_app.command(name="list", epilog="Example: noria runs list")
def runs_list(store: StoreOption = None, json_: JsonOption = False) -> int:
    """Every run of the store: its number, recipe, start, how it ended, what it made and what it reused."""
    from rich.table import Table

    from noria.artifacts import Store

    opened = Store(store)
    rows = []
    for run in opened.runs.runs() if opened.exists() else []:
        statuses = [step["status"] for step in opened.runs.steps(run["run"])]
        counts = {status: statuses.count(status) for status in sorted(set(statuses))}
        rows.append({**{name: run[name] for name in ("run", "name", "status", "started", "finished")}, "steps": counts})
    if json_:
        return print_json(rows)
    table = Table("run", "recipe", "started", "status", "steps")
    for row in rows:
        steps = ", ".join(f"{count} {status}" for status, count in row["steps"].items())
        table.add_row(str(row["run"]), row["name"], row["started"][:19].replace("T", " "), row["status"], steps)
    console().print(table if rows else f"{opened.root} has no runs yet")
    return 0


@runs_app.command(name="compare", epilog="Example: noria runs compare 3 5")
def runs_compare(
    left: Annotated[int, typer.Argument(help="A run's number.")],
    right: Annotated[int, typer.Argument(help="Another's.")],
    store: StoreOption = None,
    json_: JsonOption = False,
) -> int:
    """How each metric of two runs ended: the mean over the last tenth of its steps; speed as the median, memory as the
    most of all steps."""
    from rich.table import Table

    from noria.artifacts import Store

    opened = Store(store)
    if not opened.exists():
        raise Unknown(f"{opened.root} is no store: name the one of the runs with --store")
    pairs = compare(opened.runs, left, right)
    if json_:
        return print_json([asdict(pair) for pair in pairs])
    table = Table("step", "metric", f"run {left}", f"run {right}", "difference")
    for pair in pairs:
        values = [written(pair.metric, value) for value in (pair.left, pair.right)]
        table.add_row(pair.step, shown_as(pair.metric), *values, _difference(pair))
    console().print(table)
    return 0
