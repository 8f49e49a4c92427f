"""The funnel as a Sankey: what flows from step to step by source, and what each step takes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from noria.studio.report.marks import FORMS, At

WIDTH, HEIGHT = 1080, 430
LEFT, RIGHT, TOP, BOTTOM = 178, 92, 40, 62
GAP = 5.0  # between sources
NODE = 7.0  # width of a step
LABEL = 14.0  # least distance of two labels
KINDS = ("crawl", "docs", "books", "forums", "code", "synthetic", "traffic")


@dataclass(frozen=True)
class Flow:
    """One source: what entered each step, what left it, and its label."""

    name: str
    kind: str
    into: tuple[float, ...]
    out: tuple[float, ...]


def sankey(funnel: At, unit: str) -> Markup:
    """`unit` is docs or bytes. A source's band has the height of what entered; what a step removes bends down."""
    steps = [str(step["step"]) for step in funnel["steps"]]
    flows = [_flow(source, unit) for source in funnel["sources"]]
    total = sum(flow.into[0] for flow in flows)
    if not total:
        return Markup("")
    scale = (HEIGHT - TOP - BOTTOM - GAP * (len(flows) - 1)) / total
    dx = (WIDTH - LEFT - RIGHT) / len(steps)
    parts: list[Markup] = []
    for column, step in enumerate(steps):
        parts.append(_heading(LEFT + column * dx, dx, step, funnel["steps"][column], unit))
        parts += _column(flows, column, dx, scale)
    tops = _tops(flows, scale)
    parts += _labels(flows, [(top, flow.into[0] * scale) for top, flow in zip(tops, flows, strict=True)])
    parts += _ends(funnel, flows, scale, unit)
    words = (
        f"Funnel of {len(flows)} sources by {unit} through the steps {', '.join(steps)}; the table below says the same"
    )
    body = Markup("").join(parts)
    return Markup('<svg class="sankey" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, words, body
    )


def _flow(source: At, unit: str) -> Flow:
    rows = source["steps"].raw_value
    into, out = (tuple(float(row[f"{unit}_{side}"]) for row in rows) for side in ("in", "out"))
    return Flow(str(source["source"]), str(source["kind"]), into, out)


def _tops(flows: Sequence[Flow], scale: float) -> list[float]:
    """Where each source's band starts; it keeps that place, so that it runs straight and thins out."""
    tops, y = [], float(TOP)
    for flow in flows:
        tops.append(y)
        y += flow.into[0] * scale + GAP
    return tops


def _column(flows: Sequence[Flow], column: int, dx: float, scale: float) -> list[Markup]:
    parts = []
    x = LEFT + column * dx
    for flow, top in zip(flows, _tops(flows, scale), strict=True):
        into, kept = flow.into[column] * scale, min(flow.into[column], flow.out[column]) * scale
        if into <= 0:
            continue
        css = _css(flow.kind)
        parts.append(
            Markup('<rect class="node {}" x="{:.1f}" y="{:.1f}" width="{}" height="{:.2f}"/>').format(
                css, x, top, NODE, max(0.7, into)
            )
        )
        if kept > 0:
            parts.append(
                Markup('<rect class="flow {}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.2f}"/>').format(
                    css, x + NODE, top, dx - NODE, max(0.7, kept)
                )
            )
        if into - kept > 0.05:
            parts.append(_removed(css, x + NODE, top + kept, into - kept, dx))
    return parts


def _removed(css: str, x: float, y: float, thick: float, dx: float) -> Markup:
    """What is taken out bends down and thins to a point at the foot of the step."""
    foot_x, foot_y = x + dx * 0.62, HEIGHT - BOTTOM + 8
    middle = x + dx * 0.45
    path = (
        f"M{x:.1f},{y:.1f}C{middle:.1f},{y:.1f} {foot_x:.1f},{y + thick:.1f} {foot_x:.1f},{foot_y:.1f}"
        f"C{foot_x - 2:.1f},{y + thick + 20:.1f} {x + dx * 0.3:.1f},{y + thick:.1f} {x:.1f},{y + thick:.1f}Z"
    )
    return Markup('<path class="removed {}" d="{}"/>').format(css, path)


def _heading(x: float, dx: float, step: str, total: At, unit: str) -> Markup:
    lost, kept = total[f"{unit}_removed"], total[f"{unit}_out"]
    form = FORMS["count" if unit == "docs" else "size"]
    taken = lost.raw_value
    words = f"−{form(taken)}" if taken > 0 else f"+{form(-taken)}" if taken < 0 else "none out"
    centre = x + dx * 0.6
    return Markup('<text class="step" x="{:.1f}" y="22">{}</text>{}{}').format(
        x,
        step,
        _number(centre, HEIGHT - BOTTOM + 26, lost, words, "foot" if taken > 0 else "foot nil"),
        _number(centre, HEIGHT - BOTTOM + 43, kept, f"{form(kept.raw_value)} left"),
    )


def _number(x: float, y: float, at: At, words: str, css: str = "tick", anchor: str = "middle") -> Markup:
    tag = Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}" data-path="{}" data-value="{}">{}</text>')
    return tag.format(css, x, y, anchor, at.raw_path, repr(at.raw_value), words)


def _labels(flows: Sequence[Flow], bands: Sequence[tuple[float, float]]) -> list[Markup]:
    places = _spread([top + height / 2 for top, height in bands])
    return [
        Markup('<text class="source {}" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
            _css(flow.kind), LEFT - 8, y + 4, flow.name.replace("synthetic_", "syn. ")
        )
        for flow, y in zip(flows, places, strict=True)
    ]


def _ends(funnel: At, flows: Sequence[Flow], scale: float, unit: str) -> list[Markup]:
    """What is left of each source, at the right."""
    tops = _tops(flows, scale)
    middles = [top + flow.out[-1] * scale / 2 for top, flow in zip(tops, flows, strict=True)]
    form = FORMS["count" if unit == "docs" else "size"]
    parts = []
    for source, y in zip(funnel["sources"], _spread(middles), strict=True):
        last = source["steps"][len(source["steps"]) - 1][f"{unit}_out"]
        parts.append(_number(WIDTH - RIGHT + 8, y + 4, last, form(last.raw_value), anchor="start"))
    return parts


def _spread(wanted: Sequence[float]) -> list[float]:
    """The wanted heights, moved as little as needed for labels not to overlap, inside the picture."""
    places = list(wanted)
    for index in range(1, len(places)):
        places[index] = max(places[index], places[index - 1] + LABEL)
    limit = HEIGHT - BOTTOM + 6.0
    for index in range(len(places) - 1, -1, -1):
        places[index] = min(places[index], limit)
        limit = places[index] - LABEL
    return places


def _css(kind: str) -> str:
    return f"k{KINDS.index(kind)}" if kind in KINDS else "k7"
