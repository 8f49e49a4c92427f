"""Values that know where in the JSON they stand, so that every number on the page names its place there.

`At` wraps a JSON value with its pointer (RFC 6901); the filters below turn one into `<data value=".." data-path="..">`.
A template can show a number through them alone: there is no arithmetic on an `At`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from markupsafe import Markup, escape

NOTHING = Markup('<span class="none" title="not measured">–</span>')
ESTIMATES = ("estimate", "accuracy", "difference", "mean")


class At:
    """One value of the report's JSON, with its place."""

    __slots__ = ("raw_path", "raw_value")

    def __init__(self, value: Any, path: str = "") -> None:
        self.raw_value, self.raw_path = value, path

    def __getitem__(self, key: Any) -> At:
        step = str(key).replace("~", "~0").replace("/", "~1")
        return At(self.raw_value[key], f"{self.raw_path}/{step}")

    def __getattr__(self, name: str) -> At:
        if isinstance(self.raw_value, Mapping) and name in self.raw_value:
            return self[name]
        raise AttributeError(f"{self.raw_path or '/'} has no {name!r}")

    def __iter__(self) -> Iterator[At]:
        keys = self.raw_value if isinstance(self.raw_value, Mapping) else range(len(self.raw_value))
        return (self[key] for key in keys)

    def __len__(self) -> int:
        return len(self.raw_value)

    def __bool__(self) -> bool:
        return bool(self.raw_value)

    def __eq__(self, other: object) -> bool:
        return self.raw_value == (other.raw_value if isinstance(other, At) else other)

    def __hash__(self) -> int:
        return hash(self.raw_value)

    def __str__(self) -> str:
        return str(self.raw_value)

    def __html__(self) -> Markup:
        value = self.raw_value
        if value is None:
            return NOTHING
        if isinstance(value, bool):
            return Markup("yes" if value else "no")
        return escape(value) if isinstance(value, str) else shown(self, plain)


def get(at: At, name: str) -> At | None:
    """The entry, or None where there is none or it is null."""
    found = at[name] if name in at.raw_value else None
    return found if found is not None and found.raw_value is not None else None


def pairs(at: At) -> list[tuple[str, At]]:
    return [(name, at[name]) for name in at.raw_value]


def estimate_of(at: At) -> At:
    """The point estimate of a value with an interval, whatever it is called there."""
    return next(at[name] for name in ESTIMATES if name in at.raw_value)


# -- how a number is written --


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def points(value: float) -> str:
    """A difference of two shares, in percentage points."""
    return f"{100 * value:+.1f} pp".replace("-", "−")


def decimals(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def count(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u202f")


def size(value: float) -> str:
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= least:
            return f"{value / least:.{1 if value < 100 * least else 0}f} {unit}"
    return f"{value:.0f} B"


def big(value: float) -> str:
    """A large count in three digits: 1.23 M, 4.5 k; from 10^12 on as a power of ten (FLOPs)."""
    if abs(value) >= 1e12:
        exponent = math.floor(math.log10(abs(value)))
        return f"{value / 10**exponent:.2f}·10{str(exponent).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
    for unit, least in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= least:
            return f"{value / least:.3g} {unit}"
    return f"{value:.3g}"


def seconds(value: float) -> str:
    if value >= 3600:
        return f"{int(value // 3600)} h {int(value % 3600 // 60):02d} min"
    if value >= 60:
        return f"{int(value // 60)} min {int(value % 60):02d} s"
    return f"{value:.1f} s"


def p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def plain(value: float) -> str:
    return f"{value:,}".replace(",", "\u202f") if isinstance(value, int) else f"{value:.4g}".replace("-", "−")


FORMS: Mapping[str, Callable[[float], str]] = {
    form.__name__: form for form in (percent, points, decimals, signed, count, size, big, seconds, p_value, plain)
}


def shown(at: At, form: Callable[[float], str]) -> Markup:
    """A number as people read it, with its exact value and its place in the JSON."""
    if at.raw_value is None:
        return NOTHING
    tag = Markup('<data value="{}" data-path="{}">{}</data>')
    return tag.format(repr(at.raw_value), at.raw_path, form(at.raw_value))


def with_interval(at: At | None, form_name: str = "percent") -> Markup:
    """Estimate, 95% interval and n of a value that has them."""
    if at is None or estimate_of(at).raw_value is None:
        return NOTHING
    form = FORMS[form_name]
    low, high = shown(at["low"], bare(form)), shown(at["high"], bare(form))
    return Markup('<span class="m">{} <span class="ci"><span>[{}, {}]</span> <span>n = {}</span></span></span>').format(
        shown(estimate_of(at), form), low, high, shown(at["n"], count)
    )


def bare(form: Callable[[float], str]) -> Callable[[float], str]:
    """`form` without its unit, for the limits of an interval whose estimate has one."""
    return lambda value: form(value).removesuffix("%").removesuffix(" pp")


def filters() -> dict[str, Callable[..., Any]]:
    """All of the above as filters of a template: {{ run.seconds|seconds }}, {{ row|ci("points") }}."""

    def filter_of(form: Callable[[float], str]) -> Callable[[At | None], Markup]:
        return lambda at: NOTHING if at is None else shown(at, form)

    return {name: filter_of(form) for name, form in FORMS.items()} | {
        "ci": with_interval,
        "pairs": pairs,
        "get": get,
        "raw": lambda at: at.raw_value,
    }
