"""What a server counts, in Prometheus's text format (version 0.0.4). Updated and read in one event loop."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
REQUEST_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300)


@dataclass
class Counter:
    """A number a set of labels that only grows."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    values: dict[tuple[str, ...], float] = field(default_factory=dict)

    def add(self, amount: float, *labels: str) -> None:
        self.values[labels] = self.values.get(labels, 0.0) + amount

    def lines(self) -> Iterator[str]:
        yield from _head(self.name, self.help, "counter")
        for values, count in sorted(self.values.items()) or ([((), 0.0)] if not self.labels else []):
            yield f"{self.name}{_labels(self.labels, values)} {_number(count)}"


@dataclass
class Histogram:
    """How often a value fell at or below each bound."""

    name: str
    help: str
    bounds: Sequence[float]
    total: float = 0.0
    counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    @property
    def count(self) -> int:
        return sum(self.counts)

    def lines(self) -> Iterator[str]:
        yield from _head(self.name, self.help, "histogram")
        below = 0
        for bound, count in zip((*map(_number, self.bounds), "+Inf"), self.counts, strict=True):
            below += count
            yield f'{self.name}_bucket{{le="{bound}"}} {below}'
        yield f"{self.name}_sum {_number(self.total)}"
        yield f"{self.name}_count {below}"


@dataclass
class Gauge:
    """A number that is looked up when asked for; a counter where its name says so."""

    name: str
    help: str
    read: Callable[[], float]

    def lines(self) -> Iterator[str]:
        yield from _head(self.name, self.help, "counter" if self.name.endswith("_total") else "gauge")
        yield f"{self.name} {_number(self.read())}"


class ServerMetrics:
    """The metrics of one server; `gauges` are (help, how to read) by name."""

    def __init__(self, gauges: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        self.requests = Counter(
            "noria_requests_total",
            "Requests by endpoint and outcome: ok, refused (4xx), full (429), failed (5xx), disconnected.",
            ("endpoint", "outcome"),
        )
        self.prompt_tokens = Counter("noria_prompt_tokens_total", "Tokens of prompts taken on.")
        self.completion_tokens = Counter("noria_completion_tokens_total", "Tokens sampled.")
        self.first_token = Histogram(
            "noria_time_to_first_token_seconds", "From a request's arrival to its first token.", FIRST_TOKEN_SECONDS
        )
        self.inter_token = Histogram(
            "noria_inter_token_seconds", "Between the tokens of a choice, as they reach the client.", TOKEN_SECONDS
        )
        self.request_seconds = Histogram(
            "noria_request_seconds", "From a request's arrival to the end of its sampling.", REQUEST_SECONDS
        )
        self._gauges = [Gauge(name, told, read) for name, (told, read) in gauges.items()]
        self._gauges.append(Gauge("process_resident_memory_bytes", "Resident memory.", resident_bytes))

    def text(self) -> str:
        counted: list[Counter | Histogram | Gauge] = [self.requests, self.prompt_tokens, self.completion_tokens]
        every = [*counted, self.first_token, self.inter_token, self.request_seconds, *self._gauges]
        return "".join(f"{line}\n" for metric in every for line in metric.lines())


def resident_bytes(process: int | str = "self") -> float:
    """Resident memory of a process; NaN where the system has no /proc."""
    try:
        return float(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return float("nan")


def _head(name: str, told: str, kind: str) -> tuple[str, str]:
    return f"# HELP {name} {told}", f"# TYPE {name} {kind}"


def _labels(names: Sequence[str], values: Sequence[str]) -> str:
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return str(int(value)) if value == value and float(value).is_integer() else repr(float(value))
