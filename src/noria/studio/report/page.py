"""The report as one HTML file without a single request: template, styles and charts are put together here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from noria.artifacts import Store
from noria.artifacts.files import write_atomic
from noria.studio.report import svg
from noria.studio.report.collect import data
from noria.studio.report.marks import At, filters, get
from noria.studio.report.sankey import sankey
from noria.studio.training_metrics import shown_as
from noria.types import split_thinking

# Title, the lines that a chart holds (those that were logged), how y is written.
RL_CHARTS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("Reward: trained on, and exact", ("reward", "exact_reward", "success", "exact"), "decimals"),
    ("Probe while training: greedy accuracy on some held-out tasks", ("heldout",), "decimals"),
    ("Gap: training grader minus exact", ("gap",), "decimals"),
    ("KL to the reference", ("kl", "loss_kl"), "decimals"),
    ("Entropy, nats a token", ("entropy",), "decimals"),
    ("Reply length, tokens", ("reply_tokens",), "plain"),
    ("Shares: truncated, groups without variance, failed gradings", (
        "truncated", "zero_variance_groups", "grading_failed"), "percent"),
    ("Distinct bigrams", ("distinct_2",), "percent"),
    ("Drift of the engine from the trainer, nats a token", ("drift",), "decimals"),
    ("Tool calls a trace, and invalid ones", ("tool_calls", "invalid_calls"), "decimals"),
)  # fmt: skip


def write(store: Store, run_name: str | None, path: Path) -> Path:
    """Write the report of a run (the latest if None) and return where it is."""
    path, text = path.absolute(), render(data(store, run_name))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)
    return path


def render(report: dict[str, Any]) -> str:
    """The page of what `data` returned."""
    environment = Environment(
        loader=PackageLoader("noria.studio", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters()
    environment.filters |= {
        "name": spoken,
        "metric": monitor_name,
        "thinking": thinking,
        "difference": _difference_between,
    }
    environment.globals |= {
        "sankey": sankey,
        "ladder_chart": ladder_chart,
        "loss_chart": loss_chart,
        "stage_charts": stage_charts,
        "rl_charts": rl_charts,
        "sibling_bars": sibling_bars,
        "forest": forest,
    }
    return environment.get_template("page.html").render(d=At(report))


def spoken(name: object) -> str:
    """cold_start and reasoning_rl as people write them."""
    words = {"rl": "RL", "sft": "SFT"}
    return " ".join(words.get(word, word) for word in str(name).split("_"))


def monitor_name(name: At) -> str:
    """A metric of a history, as people read it."""
    shown = shown_as(str(name))
    return spoken(name) if shown == str(name) else shown


def thinking(reply: At) -> tuple[str, str]:
    return split_thinking(str(reply).strip())


def ladder_chart(system: At) -> Markup:
    """Loss over tokens for each size of the ladder, with the fitted law."""
    series = []
    for place, size in enumerate(system["sizes"]):
        name = f"{svg.FORMS['big'](size['matmul_parameters'].raw_value)} parameters"
        series.append(svg.Series(f"law, {name}", size["law"], place % 6, dashed=True))
        series.append(svg.Series(f"measured, {name}", size["measured"], place % 6, dots=True, joined=False))
    return svg.line_chart(
        "Ladder: held-out loss against training tokens, measured and by the fitted law",
        series,
        x_label="training tokens (log scale)",
        y_form="decimals",
        log_x=True,
        height=260,
    )


def loss_chart(pretraining: At) -> Markup:
    """Training loss over tokens, the predicted interval of the final loss, and the held-out outcome."""
    return svg.line_chart(
        "Training loss over tokens, with the predicted interval of the final held-out loss and the outcome",
        [
            svg.Series("every step", pretraining["curve"], 7),
            svg.Series(f"mean over {pretraining['window'].raw_value} steps", pretraining["smoothed"]),
        ],
        x_label="training tokens",
        y_form="decimals",
        band=pretraining["predicted"],
        marks=[(pretraining["curve"].raw_value[-1][0], pretraining["loss"])] if pretraining["curve"] else [],
        height=260,
    )


def stage_charts(stages: At) -> list[tuple[str, Markup]]:
    """(domain, chart) of accuracy after each stage."""
    domains = [str(row["domain"]) for row in stages[0]["domains"]]
    charts = []
    top = max(row["high"] for stage in stages.raw_value for row in stage["domains"])
    for place, domain in enumerate(domains):
        rows: list[tuple[str, At | None]] = [(spoken(stage["model"]), stage["domains"][place]) for stage in stages]
        charts.append((domain, svg.error_bars(f"{domain}: accuracy after each stage, 95% intervals", rows, top=top)))
    return charts


def rl_charts(step: At) -> list[tuple[str, Markup]]:
    """(title, chart) of what an RL step was watched by."""
    curves = {str(monitor["name"]): monitor["curve"] for monitor in step["monitors"]}
    named = [(title, names, form) for title, names, form in RL_CHARTS]
    by_domain = tuple(name for name in curves if name.startswith("reward_"))
    named.insert(1, ("Reward by domain or family", by_domain, "decimals"))
    charts = []
    for title, names, form in named:
        series = [
            svg.Series(spoken(name.removeprefix("reward_")), curves[name], place)
            for place, name in enumerate(names)
            if name in curves
        ]
        if series:
            zero = title.startswith(("Reward", "Gap", "Shares", "Probe", "Tool"))
            chart = svg.line_chart(
                title, series, x_label="optimiser step", x_form="count", y_form=form, zero=zero, height=190
            )
            charts.append((title, chart))
    return charts


def sibling_bars(groups: Sequence[At], title: str, rows: str, label: str, value: str = "") -> list[Markup]:
    """Error bars of shares, a chart a group, on one axis: charts side by side are read against each other.

    A row has its interval itself or, if named, under `value`.
    """
    drawn: list[tuple[str, list[tuple[str, At | None]]]] = [
        (spoken(group[title]), [(spoken(row[label]), get(row, value) if value else row) for row in group[rows]])
        for group in groups
    ]
    known = [at.raw_value["high"] for _, bars in drawn for _, at in bars if at is not None]
    top = max((high for high in known if high is not None), default=None)
    return [svg.error_bars(f"{name}, 95% intervals", bars, top=top) for name, bars in drawn]


def forest(title: str, rows: Sequence[At], labels: Sequence[str], value: str = "") -> Markup:
    named = [(" · ".join(spoken(row[name]) for name in labels), row[value] if value else row) for row in rows]
    return svg.forest(title, named)


def _difference_between(rows: At, start: str, end: str, domains: Sequence[str] = ()) -> list[At]:
    return [
        row for row in rows if row["from"] == start and row["to"] == end and (not domains or row["domain"] in domains)
    ]
