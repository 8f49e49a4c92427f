"""Token sequences that share most of their tokens, each new run of tokens kept once.

A model call's prompt repeats all that came before it, and the rollouts of one task begin alike. So a pool holds every
new token once, and a sequence is a list of (start, length) runs of the pool. Runs are found greedily by their first
SHORTEST tokens, the way LZ77 finds matches, but over the whole pool.
"""

from __future__ import annotations

from collections.abc import Sequence

# A run costs two integers; shorter matches are cheaper to spell out again.
SHORTEST = 8


class TokenPool:
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._starts: dict[tuple[int, ...], int] = {}  # the first SHORTEST tokens of a run -> where the pool has them

    def add(self, sequence: Sequence[int]) -> list[tuple[int, int]]:
        """The runs that `sequence` consists of; what the pool does not have yet is added to it."""
        wanted, runs, place = list(sequence), _Runs(), 0
        while place < len(wanted):
            start = self._starts.get(tuple(wanted[place : place + SHORTEST]))
            if start is None:
                runs.add(len(self.tokens), 1)
                self._append(wanted[place])
                place += 1
            else:
                length = self._common(start, wanted, place)
                runs.add(start, length)
                place += length
        return runs.runs

    def _append(self, token: int) -> None:
        self.tokens.append(token)
        if len(self.tokens) >= SHORTEST:
            self._starts.setdefault(tuple(self.tokens[-SHORTEST:]), len(self.tokens) - SHORTEST)

    def _common(self, start: int, wanted: list[int], place: int) -> int:
        length = SHORTEST
        while length < len(wanted) - place:
            step = 256  # compare in slices first: a prompt of thousands of tokens is one long run
            theirs = wanted[place + length : place + length + step]
            ours = self.tokens[start + length : start + length + len(theirs)]
            if ours == theirs:
                length += len(theirs)
                continue
            return length + next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(ours))
        return length


class _Runs:
    """Runs, adjacent ones joined."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, int]] = []

    def add(self, start: int, length: int) -> None:
        if self.runs and sum(self.runs[-1]) == start:
            start, length = self.runs[-1][0], self.runs.pop()[1] + length
        self.runs.append((start, length))


def sequence_of(pool: Sequence[int], runs: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    if len(runs) == 1:
        start, length = runs[0]
        return tuple(pool[start : start + length])
    tokens: list[int] = []
    for start, length in runs:
        tokens += pool[start : start + length]
    return tuple(tokens)
