"""Tables that stay readable at 80 columns: cells break between their items, and a narrow table leaves columns out."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

WIDE_COLUMNS = 110  # from here on, a row of a run or plan has room for its stage and key


@dataclass(frozen=True)
class Items:
    """A cell of several items, broken between two of them; only one that is too long for a line breaks inside."""

    items: Sequence[str]
    joint: str = ", "
    style: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("\n".join(packed(self.items, self.joint, options.max_width)), self.style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        longest = max((len(item) + len(self.joint.rstrip()) for item in self.items), default=0)
        return Measurement(longest, len(self.joint.join(self.items))).with_maximum(options.max_width)


def packed(items: Sequence[str], joint: str, width: int) -> list[str]:
    """The lines of at most `width` characters that hold the joined items."""
    lines: list[str] = []
    for index, item in enumerate(items):
        ended = item + (joint.rstrip() if index < len(items) - 1 else "")
        if lines and len(lines[-1]) + 1 + len(ended) <= width:
            lines[-1] += f" {ended}"
        else:
            lines += _broken(ended, max(width, 1))
    return lines


def _broken(item: str, width: int) -> list[str]:
    """An item in lines of its own: broken at spaces; where a word is wider than a line, after "_", "." and "/" too."""
    if max(map(len, item.split()), default=0) <= width:
        return textwrap.wrap(item, width, break_on_hyphens=False)
    lines = [""]
    for part in re.findall(r"[^\s_./]*[\s_./]|[^\s_./]+", item):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return [line[start : start + width].rstrip() for line in lines for start in range(0, len(line), width)]


def is_wide(console: Console) -> bool:
    return console.width >= WIDE_COLUMNS


def table(*columns: str, whole: Sequence[str] = ()) -> Table:
    """An empty table without lines; the columns in `whole` are never broken."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold", no_wrap=column in whole)
    return made
