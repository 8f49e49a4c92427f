"""What went into and came out of each step, by source and language, and every document that was rejected, with why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

EXCERPT = 200
COUNTS = ("docs_in", "docs_out", "bytes_in", "bytes_out")
REJECT_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "source", "language", "step", "reason", "excerpt")])


@dataclass
class Ledger:
    """Counts and rejects of one or more chunks; two ledgers add up."""

    counts: dict[tuple[str, str, str], list[int]] = field(default_factory=dict)
    rejects: list[tuple[str, str, str, str, str, str]] = field(default_factory=list)

    def passed(self, step: str, source: str, language: str, bytes_in: int, bytes_out: int | None) -> None:
        """One document came to `step`; `bytes_out` is None when it did not leave."""
        row = self.counts.setdefault((step, source, language), [0, 0, 0, 0])
        row[0] += 1
        row[2] += bytes_in
        if bytes_out is not None:
            row[1] += 1
            row[3] += bytes_out

    def rejected(self, step: str, source: str, language: str, name: str, reason: str, text: str) -> None:
        """Keep aside why the document `name` (its id) went no further."""
        self.rejects.append((name, source, language, step, reason, text[:EXCERPT]))

    def step(
        self,
        step: str,
        source: str,
        languages: Sequence[str],
        ids: Sequence[str],
        before: Sequence[str],
        after: Sequence[str],
        reasons: Sequence[str],
    ) -> list[int]:
        """Book a step over a batch, and give the rows that stay: those whose reason is ""."""
        kept = []
        for row, reason in enumerate(reasons):
            size = len(before[row].encode("utf-8", "replace"))
            if reason:
                self.passed(step, source, languages[row], size, None)
                self.rejected(step, source, languages[row], ids[row], reason, before[row])
            else:
                self.passed(step, source, languages[row], size, len(after[row].encode("utf-8", "replace")))
                kept.append(row)
        return kept

    def add(self, other: Ledger) -> None:
        for key, counts in other.counts.items():
            row = self.counts.setdefault(key, [0, 0, 0, 0])
            row[:] = [mine + theirs for mine, theirs in zip(row, counts, strict=True)]
        self.rejects += other.rejects

    def funnel(self, steps: Iterable[str]) -> list[dict[str, Any]]:
        """Rows {"step", "source", "language", docs and bytes in and out} in the order of `steps`."""
        rank = {step: index for index, step in enumerate(steps)}
        rows = sorted(self.counts.items(), key=lambda item: (rank[item[0][0]], *item[0][1:]))
        return [
            {"step": step, "source": source, "language": language, **dict(zip(COUNTS, counts, strict=True))}
            for (step, source, language), counts in rows
        ]

    def reject_table(self, source: str) -> pa.Table:
        """All rejects of one source, in an order that does not depend on how the work was split."""
        rows = sorted(row for row in self.rejects if row[1] == source)
        columns = list(zip(*rows, strict=True)) or [()] * len(REJECT_SCHEMA)
        return pa.table([pa.array(column, pa.string()) for column in columns], schema=REJECT_SCHEMA)
