"""Charts as inline SVG: lines, points with error bars. Every mark names its place in the JSON (see marks.py).

A chart is drawn 420 wide: on a phone it fills the width, on a desk two or three stand side by side, legible in both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from noria.studio.report.marks import FORMS, At, estimate_of

WIDTH = 420


@dataclass(frozen=True)
class Series:
    """A line: `curve` is the place of [[x, y], ...]."""

    name: str
    curve: At
    style: int = 0
    dashed: bool = False
    dots: bool = False
    joined: bool = True


@dataclass(frozen=True)
class Frame:
    """The plotting area, and where a value lies in it."""

    left: float
    right: float
    top: float
    bottom: float
    low: tuple[float, float]
    high: tuple[float, float]
    log_x: bool = False

    def x(self, value: float) -> float:
        low, high, at = self.low[0], self.high[0], value
        if self.log_x:
            low, high, at = math.log(low), math.log(high), math.log(value)
        return self.left + (at - low) / ((high - low) or 1.0) * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - (value - self.low[1]) / ((self.high[1] - self.low[1]) or 1.0) * (self.bottom - self.top)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_form: str = "plain",
    x_form: str = "big",
    height: int = 230,
    log_x: bool = False,
    zero: bool = False,
    band: At | None = None,
    marks: Sequence[tuple[float, At]] = (),
) -> Markup:
    """Lines over a shared axis. `band` ({low, high, mean}) is drawn across; `marks` are (x, value) points on top."""
    drawn = [one for one in series if len(one.curve)]
    xs = [point[0] for one in drawn for point in one.curve.raw_value] + [x for x, _ in marks]
    ys = [point[1] for one in drawn for point in one.curve.raw_value] + [float(at.raw_value) for _, at in marks]
    ys += [band.raw_value["low"], band.raw_value["high"]] if band is not None else []
    if not xs:
        return Markup("")
    ticks = nice_ticks(min([*ys, 0.0] if zero else ys), (max(ys) or 1.0) if zero else max(ys))
    frame = Frame(50, WIDTH - 12, 14, height - 34, (min(xs), ticks[0]), (max(xs), ticks[-1]), log_x)
    parts = [_grid(frame, ticks, FORMS[y_form]), *_x_axis(frame, x_label, FORMS[x_form])]
    if band is not None:
        parts.append(_band(frame, band))
    parts += [_line(frame, one) for one in drawn]
    parts += [_mark(frame, x, at) for x, at in marks]
    return _figure(title, height, parts) + (legend(drawn) if len(drawn) > 1 else Markup(""))


def error_bars(
    title: str,
    rows: Sequence[tuple[str, At | None]],
    *,
    form: str = "percent",
    height: int = 220,
    top: float | None = None,
) -> Markup:
    """One column a row: the estimate as a dot with its 95% interval and its value above."""
    known = [at for _, at in rows if at is not None and estimate_of(at).raw_value is not None]
    if not known:
        return Markup("")
    highest = top or max(at.raw_value["high"] for at in known)
    ticks = nice_ticks(0.0, highest)
    frame = Frame(46, WIDTH - 8, 16, height - 40, (0.0, 0.0), (float(len(rows)), ticks[-1]))
    parts = [_grid(frame, ticks, FORMS[form])]
    for place, (label, at) in enumerate(rows):
        x = frame.x(place + 0.5)
        parts.append(_words(x, height - 22, label, (frame.right - frame.left) / len(rows)))
        if at is not None and estimate_of(at).raw_value is not None:
            parts.append(_whisker(frame, x, at, FORMS[form], place))
    return _figure(title, height, parts)


def forest(title: str, rows: Sequence[tuple[str, At]], *, form: str = "points") -> Markup:
    """Differences with their intervals, one a line, beside the line of no difference."""
    known = [(label, at) for label, at in rows if at.raw_value["low"] is not None and at.raw_value["high"] is not None]
    if not known:
        return Markup("")
    reach = max(max(abs(at.raw_value["low"]), abs(at.raw_value["high"]), 0.01) for _, at in known)
    step, height = 24, 24 * len(known) + 34
    frame = Frame(150, WIDTH - 14, 6, height - 28, (-reach, 0.0), (reach, 1.0))
    zero = frame.x(0.0)
    parts = [Markup('<line class="zero" x1="{0:.1f}" x2="{0:.1f}" y1="2" y2="{1}"/>').format(zero, height - 24)]
    for place, (label, at) in enumerate(known):
        y = 16 + place * step
        low, high = frame.x(at.raw_value["low"]), frame.x(at.raw_value["high"])
        mean = estimate_of(at)
        side = "up" if at.raw_value["low"] > 0 else "down" if at.raw_value["high"] < 0 else "flat"
        parts.append(
            Markup(
                '<g class="{}"><text class="label" x="142" y="{:.1f}" text-anchor="end">{}</text>'
                '<line class="whisker" x1="{:.1f}" x2="{:.1f}" y1="{y}" y2="{y}"/>'
                '<circle r="4" cx="{:.1f}" cy="{y}" data-path="{}" data-value="{}"><title>{}</title></circle></g>'
            ).format(
                side,
                y + 4,
                label,
                low,
                high,
                frame.x(mean.raw_value),
                mean.raw_path,
                repr(mean.raw_value),
                _spelled(label, at, FORMS[form]),
                y=y,
            )
        )
    for value in (-reach, 0.0, reach):
        anchor = {-reach: "start", 0.0: "middle", reach: "end"}[value]
        parts.append(_text(frame.x(value), height - 8, FORMS[form](value), "tick", anchor))
    return _figure(title, height, parts)


def legend(series: Sequence[Series]) -> Markup:
    entry = Markup('<li class="c{}{}">{}</li>')
    items = Markup("").join(entry.format(one.style, " dashed" if one.dashed else "", one.name) for one in series)
    return Markup('<ul class="legend">{}</ul>').format(items)


def nice_ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round values that enclose [low, high]."""
    if high <= low:
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    rough = (high - low) / wanted
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


# -- the parts --


def _figure(title: str, height: float, parts: Sequence[Markup], width: int = WIDTH, kind: str = "chart") -> Markup:
    body = Markup("").join(parts)
    return Markup('<svg class="{}" viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">{}</svg>').format(
        kind, width, height, title, body
    )


def _text(x: float, y: float, words: str, kind: str = "tick", anchor: str = "middle") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(kind, x, y, anchor, words)


def _words(x: float, y: float, label: str, room: float) -> Markup:
    """A label under a column, on two lines where one is too narrow."""
    if len(label) * 6.2 <= room or not any(mark in label for mark in " _"):
        return _text(x, y, label.replace("_", " "), "label")
    words = label.replace("_", " ").split()
    half = (len(words) + 1) // 2
    return _text(x, y, " ".join(words[:half]), "label") + _text(x, y + 13, " ".join(words[half:]), "label")


def _grid(frame: Frame, ticks: Sequence[float], form: Callable[[float], str]) -> Markup:
    line = Markup('<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
    parts = []
    for tick in ticks:
        y = frame.y(tick)
        parts += [line.format(frame.left, frame.right, y=y), _text(frame.left - 6, y + 4, form(tick), "tick", "end")]
    return Markup("").join(parts)


def _x_axis(frame: Frame, label: str, form: Callable[[float], str]) -> list[Markup]:
    low, high = frame.low[0], frame.high[0]
    middle = math.sqrt(low * high) if frame.log_x else (low + high) / 2
    return [
        _text(frame.left, frame.bottom + 15, form(low), "tick", "start"),
        *([_text(frame.x(middle), frame.bottom + 15, form(middle))] if high > low + 1 else []),
        *([_text(frame.right, frame.bottom + 15, form(high), "tick", "end")] if high > low else []),
        _text((frame.left + frame.right) / 2, frame.bottom + 29, label, "axis"),
    ]


def _line(frame: Frame, one: Series) -> Markup:
    places = [(frame.x(x), frame.y(y)) for x, y in one.curve.raw_value]
    path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in places)
    drawn = (
        Markup("")
        if not one.joined
        else Markup('<path class="line c{}{}" d="{}" data-path="{}"><title>{}</title></path>').format(
            one.style, " dashed" if one.dashed else "", path, one.curve.raw_path, one.name
        )
    )
    if not one.dots and len(places) > 2:
        return drawn
    dot = Markup('<circle class="dot c{}" r="3.2" cx="{:.1f}" cy="{:.1f}" data-path="{}" data-value="{}"/>')
    return drawn + Markup("").join(
        dot.format(one.style, x, y, point[1].raw_path, repr(point[1].raw_value))
        for (x, y), point in zip(places, one.curve, strict=True)
    )


def _band(frame: Frame, band: At) -> Markup:
    top, bottom = frame.y(band.raw_value["high"]), frame.y(band.raw_value["low"])
    mean = frame.y(band.raw_value["mean"])
    return Markup(
        '<rect class="band" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" data-path="{}">'
        "<title>predicted final loss, 95% interval</title></rect>"
        '<line class="predicted" x1="{:.1f}" x2="{:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
    ).format(
        frame.left,
        top,
        frame.right - frame.left,
        max(1.0, bottom - top),
        band.raw_path,
        frame.left,
        frame.right,
        y=mean,
    )


def _mark(frame: Frame, x: float, at: At) -> Markup:
    return Markup(
        '<path class="mark" d="M{x:.1f},{a:.1f}l6,6l-6,6l-6,-6z" data-path="{p}" data-value="{v}">'
        "<title>measured: {t}</title></path>"
    ).format(x=frame.x(x), a=frame.y(at.raw_value) - 6, p=at.raw_path, v=repr(at.raw_value), t=f"{at.raw_value:.3f}")


def _whisker(frame: Frame, x: float, at: At, form: Callable[[float], str], place: int) -> Markup:
    mean = estimate_of(at)
    low, high = frame.y(at.raw_value["low"]), frame.y(at.raw_value["high"])
    y = frame.y(mean.raw_value)
    return Markup(
        '<g><line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
        '<circle r="4.5" cx="{x:.1f}" cy="{y:.1f}" data-path="{path}" data-value="{value}"><title>{words}</title>'
        '</circle><text class="value" x="{right:.1f}" y="{y4:.1f}">{shown}</text></g>'
    ).format(
        x=x,
        low=low,
        high=high,
        y=y,
        path=mean.raw_path,
        value=repr(mean.raw_value),
        words=_spelled(f"{place + 1}", at, form),
        right=x + 9,
        y4=y + 4,
        shown=form(mean.raw_value),
    )


def _spelled(label: str, at: At, form: Callable[[float], str]) -> str:
    row = at.raw_value
    limits = f"95% interval {form(row['low'])} to {form(row['high'])}, n = {row['n']}"
    return str(escape(f"{label}: {form(estimate_of(at).raw_value)}, {limits}"))
