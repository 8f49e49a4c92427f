"""Tokenised documents on disk, and the mixture as a schedule over them.

One shard set a source, never pre-blended: `tokens.bin` (u16, little-endian), `docs.idx` (u64 ends), `docs.parquet`
(which document, where it came from), `manifest.json` (counts and xxh3-128 of each file). Every document is
<|bos|> text <|end|>. `TokenStream` draws from the sets by weight, as a pure function of (seed, step): it has no state
to save, and any replica can compute its own rows.

Shapes: B rows of a batch, T predicted tokens of a row (a row holds T + 1), R held-out rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from noria.types import seed_of

TOKENS, ENDS, DOCUMENTS, MANIFEST = "tokens.bin", "docs.idx", "docs.parquet", "manifest.json"
LARGEST_VOCABULARY = 1 << 16  # tokens are u16
# Samples are handed out in blocks with fixed quotas a source, so weights are honoured to 1/4096 in every block.
BLOCK = 4096


class ShardSet:
    """The tokens of one source and split, memory-mapped. `ends[i]` is where document i ends in `tokens`."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        try:
            self.manifest: dict[str, Any] = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
            self.tokens = _map(self.folder / TOKENS, "<u2")
            self.ends = _map(self.folder / ENDS, "<u8")
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.folder} is not a readable shard set: {error}") from error
        if len(self.tokens) != self.manifest["tokens"] or len(self.ends) != self.manifest["documents"]:
            raise ValueError(f"{self.folder}: {TOKENS} or {ENDS} does not have the length in its {MANIFEST}")

    @cached_property
    def documents(self) -> pa.Table:
        """id, source, quality, cluster, origin, tokens: one row a document, in the order of `ends`."""
        return pq.read_table(self.folder / DOCUMENTS)

    def verify(self) -> None:
        """Raises ValueError naming the first file whose bytes are not those that were written."""
        for name, expected in self.manifest["xxh3_128"].items():
            if _hash_file(self.folder / name) != expected:
                raise ValueError(f"{self.folder / name} has changed since it was written; make the shards again")


def write_shards(folder: Path, documents: pa.Table, ids: Sequence[np.ndarray], tokenizer: str) -> dict[str, Any]:
    """Write one shard set and return its manifest. `ids[i]` (u16) are the tokens of row i of `documents`."""
    folder.mkdir(parents=True, exist_ok=True)
    lengths = np.array([len(row) for row in ids], dtype=np.uint64)
    tokens = np.concatenate([*ids, np.zeros(0, np.uint16)]).astype("<u2", copy=False)
    tokens.tofile(folder / TOKENS)
    np.cumsum(lengths, dtype=np.uint64).astype("<u8").tofile(folder / ENDS)
    pq.write_table(documents.append_column("tokens", pa.array(lengths)), folder / DOCUMENTS, compression="zstd")
    manifest = {
        "schema": 1,
        "dtype": "<u2",
        "tokens": len(tokens),
        "documents": len(lengths),
        "tokenizer": tokenizer,
        "xxh3_128": {name: _hash_file(folder / name) for name in (TOKENS, ENDS, DOCUMENTS)},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return manifest


class TokenStream:
    """Training batches drawn from the shard sets under `shards_dir` by `weights`; a pure function of (seed, step).

    Within a source, every window of T tokens comes once an epoch, in an order that differs by epoch. A source is read
    as a ring, so that each of its tokens is a target and one shorter than a row still works.
    """

    def __init__(
        self, shards_dir: Path, weights: Mapping[str, float], sequence_length: int, batch_rows: int, seed: int
    ) -> None:
        self.weights = normalised(weights)
        self.sequence_length, self.batch_rows, self.seed = sequence_length, batch_rows, seed
        self.sources = sorted(self.weights)
        self.sets = [ShardSet(Path(shards_dir) / source / "train") for source in self.sources]
        for source, shards in zip(self.sources, self.sets, strict=True):
            if len(shards.tokens) == 0:
                raise ValueError(f"source {source!r} has weight {self.weights[source]} but no training tokens")
        self.quotas = apportion([self.weights[source] for source in self.sources], BLOCK)
        self._edges = np.concatenate([[0], np.cumsum(self.quotas)])

    def refuse_other_tokenizer(self, digest: str) -> None:
        """Raises ValueError for a source whose shards another tokenizer made than the one of `digest`."""
        for source, shards in zip(self.sources, self.sets, strict=True):
            if shards.manifest["tokenizer"] != digest:
                made = shards.manifest["tokenizer"]
                raise ValueError(
                    f"{shards.folder}: source {source!r} was tokenised with tokenizer {made}, and this run uses "
                    f"{digest}; make the shards again with it"
                )

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (B, T+1) int64 and the document's index inside the row (B, T+1) int64, from 0."""
        rows = np.arange(step * self.batch_rows, (step + 1) * self.batch_rows, dtype=np.int64)
        which, index = self.samples(rows)
        tokens = np.empty((self.batch_rows, self.sequence_length + 1), np.int64)
        segments = np.empty_like(tokens)
        for source in np.unique(which):
            chosen = which == source
            tokens[chosen], segments[chosen] = self._windows(int(source), index[chosen])
        return tokens, segments

    def samples(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For global sample numbers (B,): the index of their source in `sources`, and which sample of it each is."""
        which, index = np.empty_like(rows), np.empty_like(rows)
        blocks = rows // BLOCK
        for block in np.unique(blocks):
            chosen = blocks == block
            slots = permute(np.arange(BLOCK), BLOCK, seed_of(self.seed, "block", int(block)))
            owners = np.searchsorted(self._edges, slots, side="right") - 1
            ranks = np.empty_like(owners)  # how many earlier samples of the block have the same source
            ranks[np.argsort(owners, kind="stable")] = np.arange(BLOCK) - np.repeat(self._edges[:-1], self.quotas)
            position = rows[chosen] % BLOCK
            which[chosen] = owners[position]
            index[chosen] = block * self.quotas[owners[position]] + ranks[position]
        return which, index

    def epochs(self, steps: int) -> dict[str, float]:
        """How often each source has been seen after `steps` (about; exact at block ends)."""
        samples = steps * self.batch_rows * self.quotas / BLOCK
        return {
            source: float(count / self._count(shards))
            for source, shards, count in zip(self.sources, self.sets, samples, strict=True)
        }

    def _count(self, shards: ShardSet) -> int:
        return -(-len(shards.tokens) // self.sequence_length)

    def _windows(self, source: int, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shards = self.sets[source]
        count, size = self._count(shards), len(shards.tokens)
        window = np.empty_like(index)
        epochs = index // count
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            key = seed_of(self.seed, "source", self.sources[source], int(epoch))
            window[chosen] = permute(index[chosen] % count, count, key)
        positions = (window[:, None] * self.sequence_length + np.arange(self.sequence_length + 1)) % size
        document = np.searchsorted(shards.ends, positions, side="right")
        changes = (document[:, 1:] != document[:, :-1]) | (positions[:, 1:] <= positions[:, :-1])
        segments = np.pad(np.cumsum(changes, axis=1), ((0, 0), (1, 0)))
        return shards.tokens[positions].astype(np.int64), segments


def heldout_rows(shards_dir: Path, source: str, sequence_length: int, max_rows: int) -> tuple[np.ndarray, float]:
    """Up to `max_rows` disjoint windows (R, T+1) int64 spread evenly over a source's held-out tokens, and its bytes a
    token (UTF-8 bytes of the texts over tokens, specials included), which turns nats a token into bits a byte.

    R is 0 when the source holds out fewer than T + 1 tokens.
    """
    shards = ShardSet(Path(shards_dir) / source / "heldout")
    facts = json.loads((Path(shards_dir) / "shards.json").read_text(encoding="utf-8"))["sources"][source]
    count = max(0, (len(shards.tokens) - 1) // sequence_length)
    rows = min(count, max_rows)
    starts = (np.arange(rows) * count // max(rows, 1)) * sequence_length
    tokens = shards.tokens[starts[:, None] + np.arange(sequence_length + 1)].astype(np.int64)
    return tokens, facts["heldout_bytes"] / max(1, facts["heldout_tokens"])


def normalised(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights that sum to 1, without the zero ones. Raises ValueError for a negative one or for none above zero."""
    if any(not weight >= 0 for weight in weights.values()) or not sum(weights.values()) > 0:
        raise ValueError(f"mixture weights must be >= 0 with at least one above: {dict(weights)}")
    total = sum(weights.values())
    return {source: weight / total for source, weight in sorted(weights.items()) if weight > 0}


def apportion(weights: Sequence[float], total: int) -> np.ndarray:
    """Integers that sum to `total` in proportion to `weights` (largest remainder; ties to the earlier)."""
    exact = np.asarray(weights, dtype=np.float64) * total / sum(weights)
    whole = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - whole), kind="stable")
    whole[order[: total - int(whole.sum())]] += 1
    return whole


def permute(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """A keyed permutation of range(size) applied to `index`: a balanced Feistel network with cycle walking.

    Bijective by construction, with no table to hold: O(1) memory for any size (Black and Rogaway 2002, section 5).
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    out = np.asarray(index, dtype=np.uint64).copy()
    todo = np.ones(out.shape, dtype=bool)
    while todo.any():
        left, right = out[todo] >> np.uint64(half), out[todo] & mask
        for turn in range(6):
            left, right = right, left ^ (_mix(right, seed_of(key, turn)) & mask)
        out[todo] = (left << np.uint64(half)) | right
        todo = out >= size  # a value outside walks on along its cycle until it is inside
    return out.astype(np.int64)


def _mix(values: np.ndarray, key: int) -> np.ndarray:
    """splitmix64's finaliser over values + key."""
    with np.errstate(over="ignore"):
        mixed = values + np.uint64(key)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def _map(path: Path, dtype: str) -> np.ndarray:
    """A read-only memory map; an empty file (which can't be mapped) gives an empty array."""
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)


def _hash_file(path: Path) -> str:
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    return hasher.hexdigest()
