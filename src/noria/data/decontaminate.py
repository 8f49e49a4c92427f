"""Documents that hold evaluation tasks are found and dropped, and reported per benchmark.

A cheap probe looks for any 13-gram of a task (GPT-3). A shorter task is probed whole, from 5 words, and must stand
alone in the document: "What is 3 + 1" is not in "What is 3 + 1 - 2?". A document that is hit gets a score for that
task: 0.75 x the share of the question's n-grams found, weighted by rarity among the tasks (so that a template that all
tasks share counts little), + up to 0.25 if the answer's words occur in it too (an answer that
many tasks share, such as "true", adds little).

Shapes: D documents of a batch, G n-grams of the registry.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from noria.data.words import grams, hash_words
from noria.types import Task

GRAM, SHORTEST = 13, 5
QUESTION, ANSWER = 0.75, 0.25


@dataclass(frozen=True)
class Hit:
    """A document that holds (part of) an evaluation task."""

    row: int
    benchmark: str
    task_id: str
    score: float


class TaskIndex:
    """The n-grams of all evaluation tasks, ready to probe documents with."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = [(task.family, task.id) for task in tasks]
        questions = hash_words(["\n".join(message.content for message in task.messages) for task in tasks])
        self.answers = _whole([task.answer for task in tasks])
        shared = Counter(self.answers)
        # How much an answer tells: 1 if only one task has it, towards 0 if all do ("true").
        most = max(np.log(max(len(tasks), 2)), 1e-9)
        self.surprise = [float(1 - np.log(shared[answer]) / most) for answer in self.answers]
        sizes = np.minimum(questions.counts, GRAM)
        owners: list[np.ndarray] = []
        hashes: list[np.ndarray] = []
        self.sizes = sorted({int(size) for size in sizes if size >= SHORTEST})
        for size in self.sizes:
            found, _, offsets = grams(questions, size)
            rows = np.repeat(np.arange(len(tasks)), np.diff(offsets))
            chosen = sizes[rows] == size
            owners.append(rows[chosen])
            hashes.append(found[chosen])
        owner = np.concatenate([np.zeros(0, np.int64), *owners])
        hashed = np.concatenate([np.zeros(0, np.uint64), *hashes])
        pairs = np.unique(np.stack([hashed, owner.astype(np.uint64)], axis=1), axis=0)
        self.hashes, first, counts = np.unique(pairs[:, 0], return_index=True, return_counts=True)  # (G,)
        self._owners, self._first = pairs[:, 1].astype(np.int64), np.append(first, len(pairs))
        self.rarity = np.log1p(len(tasks) / counts)  # (G,)
        self.weight = np.zeros(len(tasks))
        np.add.at(self.weight, self._owners, np.repeat(self.rarity, counts))

    def unprobed(self) -> dict[str, int]:
        """Tasks of each benchmark that are too short to look for."""
        short: dict[str, int] = defaultdict(int)
        for (family, _), weight in zip(self.tasks, self.weight, strict=True):
            short[family] += weight == 0
        return {family: count for family, count in sorted(short.items()) if count}

    def find(self, texts: Sequence[str], least: float) -> list[Hit]:
        """The highest-scoring task of each document that reaches `least`."""
        if not len(self.hashes):
            return []
        words = hash_words(texts)
        found: dict[int, set[int]] = defaultdict(set)
        opening = np.concatenate([[True], words.closing[:-1]])[: len(words.closing)]

        def alone(first: np.ndarray, size: int) -> np.ndarray:
            return opening[first] & words.closing[first + size - 1]

        for size in self.sizes:
            hashes, starts, offsets = grams(words, size)
            places = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
            hit = np.flatnonzero(self.hashes[places] == hashes)
            if size < GRAM:
                hit = hit[alone(starts[hit], size)]
            rows = np.searchsorted(offsets, hit, side="right") - 1
            for row, place in zip(rows.tolist(), places[hit].tolist(), strict=True):
                found[row].add(place)
        hits = []
        for row, places_of_row in sorted(found.items()):
            own = words.hashes[words.offsets[row] : words.offsets[row + 1]]
            best = max(self._scores(places_of_row, own), key=lambda item: (item[1], -item[0]))
            if best[1] >= least:
                family, task_id = self.tasks[best[0]]
                hits.append(Hit(row, family, task_id, round(best[1], 4)))
        return hits

    def _scores(self, places: set[int], own: np.ndarray) -> list[tuple[int, float]]:
        overlap: dict[int, float] = defaultdict(float)
        for place in sorted(places):
            for owner in self._owners[self._first[place] : self._first[place + 1]]:
                overlap[int(owner)] += float(self.rarity[place])
        present = set(own.tolist())
        scores = []
        for owner, weight in overlap.items():
            answer = self.answers[owner]
            answered = bool(answer) and answer <= present
            credit = ANSWER * self.surprise[owner] * answered
            scores.append((owner, QUESTION * weight / float(self.weight[owner]) + credit))
        return scores


def _whole(texts: Sequence[str]) -> list[frozenset[int]]:
    """The set of word hashes of each text."""
    words = hash_words(texts)
    return [frozenset(part.tolist()) for part in np.split(words.hashes, words.offsets[1:-1])]
