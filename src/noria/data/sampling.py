"""From a corpus to what a model is trained on: texts for the tokenizer, and tokenised shards with their mixture.

A document's rank is a hash of (seed, id): taking the first so many by rank is a uniform sample, independent of order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noria.data.documents import DOCUMENT_SCHEMA
from noria.data.mixture import bounded_by_epochs, mixture_weights
from noria.data.shards import LARGEST_VOCABULARY, write_shards
from noria.data.tokenizer import Tokenizer
from noria.types import seed_of

BATCH_CHARACTERS = 100_000


def read_override(path: Path) -> dict[str, float]:
    """Weights by source from a mixture artifact: {"weights": {source: weight}}. Raises ValueError."""
    found = json.loads(path.read_text(encoding="utf-8"))
    weights = found.get("weights") if isinstance(found, dict) else None
    if not isinstance(weights, dict):
        raise ValueError(f'{path}: expected {{"weights": {{source: weight}}}}')
    return {str(source): float(weight) for source, weight in weights.items()}


def sample_texts(corpus: Path, kind_weights: Mapping[str, float], most_bytes: int, seed: int) -> list[str]:
    """Texts of about `most_bytes` in all, each source in proportion to its mixture weight, by rank."""
    kinds = _kinds(corpus)
    sizes = {source: _bytes(_read(corpus, source)) for source in kinds}
    weights = mixture_weights(kinds, sizes, kind_weights)
    texts: list[str] = []
    for source in sorted(weights):
        table, room = _ranked(_read(corpus, source), seed), weights[source] * most_bytes
        for text in table.column("text").to_pylist():
            if room <= 0:
                break
            texts.append(text)
            room -= len(text.encode())
    return texts


def build_shards(
    *,
    corpus: Path,
    out: Path,
    tokenizer: Tokenizer,
    kind_weights: Mapping[str, float],
    override: Mapping[str, float] | None,
    traffic: Sequence[Path],
    train_tokens: int,
    heldout_fraction: float,
    most_heldout_tokens: int,
    budget_tokens: int | None,
    most_epochs: float,
    size_exponent: float,
    seed: int,
    report: Callable[..., None],
) -> dict[str, Any]:
    """Write <source>/{train,heldout} and shards.json under `out`; give the metrics."""
    if tokenizer.vocab_size > LARGEST_VOCABULARY:
        raise ValueError(f"{tokenizer.vocab_size} tokens do not fit the shards' 16 bits; at most {LARGEST_VOCABULARY}")
    kinds = _kinds(corpus)
    tables = {source: _read(corpus, source) for source in sorted(kinds)}
    if traffic:
        logged = [_read_folder(folder / "documents", "traffic") for folder in traffic]
        kinds["traffic"], tables["traffic"] = "traffic", pa.concat_tables(logged)
    sizes = {source: _bytes(table) for source, table in tables.items()}
    weights = mixture_weights(kinds, sizes, kind_weights, override, size_exponent)
    facts: dict[str, dict[str, Any]] = {}
    done = 0
    for source, weight in sorted(weights.items()):
        held, train = _split(_ranked(tables.pop(source), seed), heldout_fraction, seed)
        report(done / 1e6, train_tokens / 1e6, "Mtokens", source)
        shard = _sharder(out / source, tokenizer, kinds[source])
        facts[source] = shard(held, "heldout", most_heldout_tokens) | shard(
            train, "train", round(weight * train_tokens)
        )
        done += facts[source]["train_tokens"]
    tokens = {source: fact["train_tokens"] for source, fact in facts.items()}
    weights = {source: weight for source, weight in weights.items() if tokens[source]}
    if budget_tokens:
        weights = bounded_by_epochs(weights, tokens, budget_tokens, most_epochs)
    total = sum(weights.values())
    weights = {source: weight / total for source, weight in weights.items()}
    described = {"sources": facts, "weights": weights, "tokenizer": tokenizer.digest}
    text = json.dumps(described, indent=1, sort_keys=True, ensure_ascii=False)
    (out / "shards.json").write_text(text + "\n", encoding="utf-8")
    report(done / 1e6, done / 1e6, "Mtokens")
    return {"train_tokens": sum(tokens.values()), "weights": weights, "tokens_by_source": tokens}


def _sharder(folder: Path, tokenizer: Tokenizer, kind: str) -> Callable[[pa.Table, str, int], dict[str, Any]]:
    """A function that tokenises documents in order until it has so many tokens, and writes them as one split."""

    def shard(table: pa.Table, split: str, most_tokens: int) -> dict[str, Any]:
        ids: list[np.ndarray] = []
        size, count = 0, 0
        for texts in _batches(table.column("text")):
            if count >= most_tokens:
                break
            for text, encoded in zip(texts, tokenizer.encode_many(texts), strict=True):
                if count >= most_tokens:
                    break
                ids.append(np.array([tokenizer.bos, *encoded, tokenizer.end], np.uint16))
                count += len(ids[-1])
                size += len(text.encode())
        taken = table.slice(0, len(ids))
        write_shards(folder / split, _about(taken), ids, tokenizer.digest)
        licences = sorted(set(taken.column("licence").to_pylist()))
        found = {f"{split}_tokens": count, f"{split}_bytes": size, f"{split}_documents": len(ids)}
        return found | ({"licence": " AND ".join(licences), "kind": kind} if split == "train" else {})

    return shard


def _batches(column: pa.ChunkedArray) -> Iterator[list[str]]:
    """Texts in batches of about BATCH_CHARACTERS: a few that are not needed cost little."""
    batch: list[str] = []
    for text in column.to_pylist():
        batch.append(text)
        if sum(map(len, batch)) >= BATCH_CHARACTERS:
            yield batch
            batch = []
    yield batch


def _split(table: pa.Table, fraction: float, seed: int) -> tuple[pa.Table, pa.Table]:
    """(held out, training): by a hash of the id; a source of at least two documents always holds one out."""
    draws = np.array([seed_of("heldout", seed, name) for name in table.column("id").to_pylist()], dtype=np.float64)
    held = draws < fraction * 2.0**63
    if len(table) > 1 and not held.any():
        held[np.argmin(draws)] = True
    if len(table) > 1 and held.all():
        held[np.argmax(draws)] = False
    return table.filter(pa.array(held)), table.filter(pa.array(~held))


def _ranked(table: pa.Table, seed: int) -> pa.Table:
    ranks = [seed_of("rank", seed, name) for name in table.column("id").to_pylist()]
    return table.take(sorted(range(len(ranks)), key=lambda row: (ranks[row], row)))


def _about(table: pa.Table) -> pa.Table:
    """What docs.parquet says of each document: enough to get from a token to its raw bytes."""
    signals: Sequence[dict[str, float]] = [dict(row) for row in table.column("signals").to_pylist()]
    copies = [int(row.get("near_copies", 1)) for row in signals]
    return pa.table(
        {
            "id": table.column("id"),
            "source": table.column("source"),
            "quality": pa.array([row.get("quality", 0.0) for row in signals], pa.float64()),
            "near_copies": pa.array(copies, pa.int64()),
            "origin": table.column("origin"),
        }
    )


def _kinds(corpus: Path) -> dict[str, str]:
    facts = json.loads((corpus / "sources.json").read_text(encoding="utf-8"))
    return {name: fact["kind"] for name, fact in facts.items()}


def _read(corpus: Path, source: str) -> pa.Table:
    return pq.read_table(corpus / "documents" / f"{source}.parquet", schema=DOCUMENT_SCHEMA)


def _read_folder(folder: Path, source: str) -> pa.Table:
    """All documents of a folder as one source."""
    tables = [pq.read_table(path, schema=DOCUMENT_SCHEMA) for path in sorted(folder.glob("*.parquet"))]
    table = pa.concat_tables(tables) if tables else DOCUMENT_SCHEMA.empty_table()
    place = table.schema.get_field_index("source")
    # The type is given, as an empty list has none of its own, and logs with and without documents must stack.
    return table.set_column(place, DOCUMENT_SCHEMA.field(place), pa.array([source] * len(table), pa.string()))


def _bytes(table: pa.Table) -> int:
    return sum(len(text.encode()) for text in table.column("text").to_pylist())
