"""The run as it goes: a line a stage with its rate and time left on a terminal; elsewhere plain lines now and then."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from noria.studio.tables import Items, is_wide
from noria.studio.tables import table as new_table

if TYPE_CHECKING:
    from noria.artifacts import Artifact, Progress, Step

FINISHED = ("made", "reused")
MARKS = {
    "made": "●",
    "reused": "○",
    "failed": "✗",
    "interrupted": "◌",
    "running": "▸",
    "publishing": "▸",
    "waiting": "…",
}
# Without a terminal a step that runs tells how far it is this often, or each time it has run a twentieth longer: a log
# of ten minutes has some forty such lines, one of a day a hundred and fifty.
SECONDS_BETWEEN_LINES = 10.0
STYLES = {"made": "green", "reused": "dim", "failed": "red", "interrupted": "yellow", "waiting": "yellow"}


class LiveRun:
    """Give `observe` to an Executor inside `with LiveRun(steps, console)`; `table` sums up afterwards. `below` draws
    what a terminal shows under the lines."""

    def __init__(self, steps: Sequence[Step], console: Console, below: Callable[[], RenderableType] = Text) -> None:
        self.console, self.below = console, below
        self.stages: dict[str, list[str]] = {}
        for step in sorted(steps, key=lambda step: (step.stage == stage_word(step.stage), step.stage)):
            self.stages.setdefault(step.stage, []).append(step.name)
        self.order = [step.name for step in steps]
        self.progress: dict[str, Progress] = {}
        self.said_at = 0.0  # seconds of the step that runs, when its last plain line was printed
        self.live = Live(console=console, get_renderable=self._render, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveRun:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def observe(self, progress: Progress) -> None:
        before = self.progress.get(progress.step_name)
        self.progress[progress.step_name] = progress
        if self.console.is_terminal:
            return
        if before is None or before.status != progress.status:
            self._say_status(progress)
        elif progress.status == "running" and progress.seconds >= self._due():
            self._say(progress, progress_text(progress))

    def _due(self) -> float:
        return self.said_at + max(SECONDS_BETWEEN_LINES, self.said_at / 20)

    def _say_status(self, progress: Progress) -> None:
        if progress.status == "publishing":
            return
        took = f" in {duration(progress.seconds)}" if progress.status == "made" else ""
        why = f" ({progress.message})" if progress.message and progress.status != "made" else ""
        self._say(progress, f"{progress.status}{took}{why}")

    def _say(self, progress: Progress, what: str) -> None:
        self.said_at = progress.seconds
        line = f"{stage_title(progress.stage)}: {progress.step_name} {what}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> Group:
        return Group(*(self._line(stage, names) for stage, names in self.stages.items()), self.below())

    def _line(self, stage: str, names: Sequence[str]) -> Text:
        known = [self.progress[name] for name in names if name in self.progress]
        finished = sum(progress.status in FINISHED for progress in known)
        current = next((p for p in reversed(known) if p.status not in FINISHED), None)
        if current is None:
            done = finished == len(names)
            mark = ("●" if any(p.status == "made" for p in known) else "○") if done else "·"
            style = "green" if mark == "●" else "dim"
            spent = sum(progress.seconds for progress in known)
            after = duration(spent) if done and spent >= 1 else ""
            return Text.assemble(
                (f"{mark} {stage_title(stage):<22}", style), (f"{finished:>2}/{len(names):<3}", "dim"), after
            )
        line = Text.assemble(
            (f"{MARKS[current.status]} {stage_title(stage):<22}", STYLES.get(current.status, "bold")),
            (f"{finished:>2}/{len(names):<3}", "dim"),
            f"{current.step_name} ",
        )
        line.append(progress_text(current), "cyan")
        line.no_wrap, line.overflow = True, "ellipsis"
        return line

    def table(self, made: Mapping[str, Artifact]) -> Table:
        """Every step of the run in order: what was done, how long it took, the main numbers; the stage and the key
        where there is room."""
        wide = is_wide(self.console)
        columns = ("stage", "step", "", "time", "key", "result") if wide else ("step", "", "time", "result")
        table = new_table(*columns, whole=columns[:-1])
        shown = ""
        for name in self.order:
            progress = self.progress.get(name)
            if progress is None:
                continue
            title = stage_title(progress.stage)
            metrics = made[name].metrics if name in made else {}
            status = Text(progress.status, STYLES.get(progress.status, ""))
            spent = duration(progress.seconds) if progress.status != "reused" else ""
            result = Items(main_numbers(metrics, 4 if wide else 2).split(", "), style="dim")
            if wide:
                table.add_row(title if title != shown else "", name, status, spent, progress.key[:8], result)
            else:
                table.add_row(name, status, spent, result)
            shown = title
        return table


def progress_text(progress: Progress) -> str:
    """E.g. "12k/40k tokens  850/s  33 s left  width 64"."""
    if progress.status in ("waiting", "failed", "interrupted"):
        return progress.message or progress.status
    parts = []
    if progress.total:
        parts.append(f"{number(progress.done)}/{number(progress.total)} {progress.unit}".strip())
    if progress.rate is not None:
        parts.append(f"{number(progress.rate)}/s")
    if progress.seconds_left is not None:
        parts.append(f"{duration(progress.seconds_left)} left")
    parts.append(progress.note or ("" if parts else progress.message))
    return "  ".join(part for part in parts if part)


def stage_word(stage: str) -> str:
    """ "s4_pretraining" -> "pretraining"; what is no stage (a loop) keeps its name."""
    return re.sub(r"^s\d_", "", stage)


def stage_title(stage: str) -> str:
    """ "s4_pretraining" -> "4 pretraining"."""
    return re.sub(r"^s(\d)_", r"\1 ", stage).replace("_", " ")


def main_numbers(metrics: Mapping[str, Any], most: int = 4) -> str:
    """The first few plain numbers and words of an artifact's metrics; digests are for machines."""
    found = []
    for name, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            continue
        if isinstance(value, str) and re.fullmatch("[0-9a-f]{16,64}", value):
            continue
        found.append(f"{name} {value if isinstance(value, str) else number(value)}")
    return ", ".join(found[:most])


def number(value: float) -> str:
    """Three significant digits with k, M, G, T."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            scale = 1e3 if letter == "k" else size
            return f"{value / scale:.3g}{letter}"
    return f"{value:.0f}" if float(value).is_integer() or abs(value) >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """ "0.4 s", "33 s", "2 min 05 s", "1 h 02 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def total_seconds(progresses: Iterable[Progress]) -> float:
    return sum(progress.seconds for progress in progresses if progress.status != "reused")
