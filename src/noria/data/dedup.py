"""Duplicates: exact, near (MinHash) and by line. No result depends on the order of the documents.

MinHash over word 5-grams, 14 bands x 8 rows = 112 hashes: two documents of Jaccard similarity 0.7 / 0.75 / 0.8 / 0.85
share a band with probability 56 / 77 / 92 / 98.8% (FineWeb's setting). Candidates are checked against the similarity
that their whole signatures estimate. Of a cluster the best member is kept, not whichever came first.

Shapes: D documents, P signature values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from noria.data.words import Words, grams, mix
from noria.types import digest

BANDS, ROWS = 14, 8
SIGNATURE = BANDS * ROWS
SHINGLE = 5
SEED = 1
SHORTEST_LINE = 25  # characters; shorter lines repeat for good reasons


def exact_key(text: str) -> str:
    """Equal for texts that differ only in white space."""
    return digest(" ".join(text.split()))


def signatures(words: Words) -> tuple[np.ndarray, np.ndarray]:
    """MinHash signatures (D, P) uint32, and which documents (D,) have enough words for one."""
    import rensa

    hashes, _, offsets = grams(words, SHINGLE)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets.astype(np.uint64), SIGNATURE, SEED)
    values = np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(offsets) - 1, SIGNATURE)
    return values, np.diff(offsets) > 0


def near_clusters(values: np.ndarray, usable: np.ndarray, ids: Sequence[str], similarity: float) -> np.ndarray:
    """The cluster (D,) of each document: the index of its member with the smallest id; alone, its own index."""
    order = np.argsort(np.array(ids, dtype=object), kind="stable")
    order = order[usable[order]]
    parent = np.arange(len(ids))
    for band in range(BANDS):
        part = values[order, band * ROWS : (band + 1) * ROWS].astype(np.uint64)
        key = np.zeros(len(order), np.uint64)
        for column in part.T:
            key = mix(key ^ column)
        # Stable, so that the first of each run of equal keys is the member with the smallest id.
        ranks = np.argsort(key, kind="stable")
        fresh = np.concatenate([[True], key[ranks[1:]] != key[ranks[:-1]]])[: len(ranks)]
        first = order[ranks[np.maximum.accumulate(np.where(fresh, np.arange(len(ranks)), 0))]]
        member = order[ranks]
        pairs = np.flatnonzero(~fresh)
        same = (values[member[pairs]] == values[first[pairs]]).mean(axis=1) >= similarity
        for one, other in zip(first[pairs[same]], member[pairs[same]], strict=True):
            _join(parent, int(one), int(other))
    roots = np.array([_root(parent, index) for index in range(len(ids))], dtype=np.int64)
    smallest = {int(roots[index]): int(index) for index in reversed(_by_id(ids))}
    return np.array([smallest[int(root)] for root in roots], dtype=np.int64)


def best_of(clusters: Sequence, priority: Sequence[int], quality: Sequence[float], ids: Sequence[str]) -> np.ndarray:
    """Which documents (D,) to keep: of each cluster the one with the smallest priority, then best quality, then id."""
    best: dict[object, tuple[tuple[int, float, str], int]] = {}
    for row, (cluster, rank, value, name) in enumerate(zip(clusters, priority, quality, ids, strict=True)):
        key = (rank, -value, name)
        if cluster not in best or key < best[cluster][0]:
            best[cluster] = (key, row)
    keep = np.zeros(len(ids), dtype=bool)
    keep[[row for _, row in best.values()]] = True
    return keep


def repeated_lines(texts: Sequence[str], most_documents: int) -> set[str]:
    """Lines of at least SHORTEST_LINE characters that occur in more than `most_documents` texts (Llama 3: 6)."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update({line for line in map(str.strip, text.split("\n")) if len(line) >= SHORTEST_LINE})
    return {line for line, count in counts.items() if count > most_documents}


def drop_lines(text: str, lines: set[str]) -> str:
    kept = [line for line in text.split("\n") if line.strip() not in lines]
    return "\n".join(kept).strip()


def _by_id(ids: Sequence[str]) -> list[int]:
    return sorted(range(len(ids)), key=ids.__getitem__)


def _root(parent: np.ndarray, index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = int(parent[index])
    return index


def _join(parent: np.ndarray, one: int, other: int) -> None:
    one, other = _root(parent, one), _root(parent, other)
    if one != other:
        parent[other] = one
