"""Raw records to a clean corpus: chunks are cleaned in parallel, then what needs all documents is done over all.

Order: extract, language, quality, personal data, safety (noria.data.clean, by chunk); exact, near and line duplicates,
contamination (here). Writes documents/<source>.parquet, rejects/<source>.parquet, funnel.json, contamination.json,
sources.json. The result depends neither on the order of the records nor on the number of workers.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noria.data import dedup, language
from noria.data.clean import (
    STEPS,
    CleanJob,
    CleanRules,
    RawChunk,
    Source,
    TextChunk,
    clean_chunk,
    extract_chunk,
    signal_map,
    signature_matrix,
)
from noria.data.decontaminate import Hit, TaskIndex
from noria.data.documents import DOCUMENT_SCHEMA
from noria.data.ledger import Ledger
from noria.data.parallel import Workers, cores
from noria.types import Task, digest

CHUNK_RECORDS, CHUNK_BYTES = 1024, 700_000
PROBE_DOCUMENTS, PROBE_CHARACTERS = 2048, 2_000_000
SMALL_BYTES = 5_000_000  # raw bytes below which starting processes takes longer than the work
SHORTEST_AFTER_LINES = 100  # characters that must be left of a document after its repeated lines are gone


class Documents:
    """The documents still in the corpus, column-wise, in the order (source, id, place). Steps narrow it."""

    def __init__(self, table: pa.Table) -> None:
        place = [f"{o['file']}:{o['offset']:012d}" for o in table.column("origin").to_pylist()]
        keys = zip(table.column("source").to_pylist(), table.column("id").to_pylist(), place, strict=True)
        self.keys = ["/".join(key) for key in keys]
        order = sorted(range(len(self.keys)), key=self.keys.__getitem__)
        self.keys = [self.keys[row] for row in order]
        self.table = table.take(order)
        self.texts: list[str] = self.table.column("text").to_pylist()
        self.sources: list[str] = self.table.column("source").to_pylist()
        self.languages: list[str] = self.table.column("language").to_pylist()
        self.facts: list[dict[str, float]] = [dict(row) for row in self.table.column("signals").to_pylist()]

    def narrow(self, step: str, ledger: Ledger, after: Sequence[str], reasons: Sequence[str]) -> None:
        """Book `step` and keep the documents without a reason, with their new text."""
        ids = self.table.column("id").to_pylist()
        kept: list[int] = []
        for source in sorted(set(self.sources)):
            rows = [row for row, name in enumerate(self.sources) if name == source]
            columns = (self.languages, ids, self.texts, after, reasons)
            tongues, names, before, later, why = ([column[row] for row in rows] for column in columns)
            kept += [rows[place] for place in ledger.step(step, source, tongues, names, before, later, why)]
        kept.sort()
        self.table = self.table.take(kept)
        self.texts = [after[row] for row in kept]
        self.keys, self.sources = [self.keys[row] for row in kept], [self.sources[row] for row in kept]
        self.languages, self.facts = [self.languages[row] for row in kept], [self.facts[row] for row in kept]

    def finished(self) -> pa.Table:
        """Rows of DOCUMENT_SCHEMA with the texts and signals as they now are."""
        columns = {name: self.table.column(name) for name in DOCUMENT_SCHEMA.names}
        columns["text"] = pa.array(self.texts, pa.large_string())
        columns["content_hash"] = pa.array([digest(text) for text in self.texts], pa.string())
        columns["signals"] = signal_map(self.facts)
        return pa.table(columns, schema=DOCUMENT_SCHEMA)


@dataclass(frozen=True)
class WholeRules:
    """What is decided over all documents; see CorpusConfig in stage 2 for each field."""

    near_kinds: Sequence[str]
    near_similarity: float
    kind_priority: Sequence[str]
    line_kinds: Sequence[str]
    most_line_documents: int
    contamination_score: float


def build_corpus(
    raw: Path,
    out: Path,
    tasks: Sequence[Task],
    rules: CleanRules,
    whole: WholeRules,
    report: Callable[..., None],
    observed: Path | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Write the corpus under `out` and give its metrics. `observed` gets the seconds of each step."""
    clock, ledger = _Clock(), Ledger()
    facts = json.loads((raw / "sources.json").read_text(encoding="utf-8"))
    chunks = list(_chunks(raw, facts))
    if not chunks:
        raise ValueError(f"{raw} holds no records; the corpus would be empty")
    small = sum(sum(chunk.rows.column("length").to_pylist()) for chunk in chunks) < SMALL_BYTES
    with Workers(workers or (1 if small else cores())) as pool:
        documents = Documents(_cleaned(chunks, rules, ledger, report, clock, pool))
        kinds = {name: source["kind"] for name, source in facts.items()}
        report(0.7, 1, "", "duplicates")
        _drop_duplicates(documents, "exact", ledger, _exact(documents), kinds, whole)
        clock.lap("exact")
        _drop_duplicates(documents, "near", ledger, _near(documents, kinds, whole), kinds, whole)
        clock.lap("near")
        report(0.8, 1, "", "repeated lines")
        dropped_lines = _drop_lines(documents, kinds, whole, ledger)
        clock.lap("lines")
        found = _decontaminate(documents, tasks, whole.contamination_score, ledger, report, pool)
        clock.lap("decontaminate")
    _write(out, documents.finished(), ledger, facts)
    _write_json(out / "contamination.json", found)
    clock.lap("write")
    if observed is not None:
        _write_json(observed / "seconds.json", clock.laps)
    report(1, 1, "", "done")
    return {
        "documents": len(documents.texts),
        "text_bytes": sum(len(text.encode()) for text in documents.texts),
        "rejects": dict(sorted(Counter(row[3] for row in ledger.rejects).items())),
        "repeated_lines": dropped_lines,
        "contaminated_documents": sum(row["documents"] for row in found["benchmarks"].values()),
    }


def _cleaned(
    chunks: Sequence[RawChunk],
    rules: CleanRules,
    ledger: Ledger,
    report: Callable[..., None],
    clock: _Clock,
    pool: Workers,
) -> pa.Table:
    total = 2 * len(chunks) / 0.7  # the rest of the bar is for the steps over all documents
    texts: list[TextChunk] = []
    for chunk in pool.map(extract_chunk, chunks):
        texts.append(chunk)
        ledger.add(chunk.ledger)
        report(len(texts) / total, 1, "", f"extracting {chunk.source.name}")
    clock.lap("extract and language")
    detected = [chunk for chunk in texts if not chunk.source.language]
    names = [name for chunk in detected for name in chunk.languages]
    scores = np.concatenate([np.zeros(0), *(chunk.scores for chunk in detected)])
    least = language.thresholds(names, scores)
    tables = []
    jobs = [CleanJob(chunk, least, rules) for chunk in texts]
    for done, (table, booked) in enumerate(pool.map(clean_chunk, jobs), 1):
        tables.append(table)
        ledger.add(booked)
        report((len(chunks) + done) / total, 1, "", f"cleaning {texts[done - 1].source.name}")
    clock.lap("quality, pii, safety")
    return pa.concat_tables(tables).combine_chunks()


def _chunks(raw: Path, facts: Mapping[str, Any]) -> Iterator[RawChunk]:
    """Records in pieces of equal size, cut the same way wherever they run."""
    index = pq.read_table(raw / "index.parquet")
    sources = np.array(index.column("source").to_pylist(), dtype=object)
    for name, fact in sorted(facts.items()):
        rows = index.take(np.flatnonzero(sources == name))
        rows = rows.take(sorted(range(len(rows)), key=rows.column("id").to_pylist().__getitem__))
        source = Source(name, fact["kind"], fact["licence"], fact["format"], fact["language"])
        lengths = rows.column("length").to_numpy()
        starts = _cuts(lengths.tolist(), CHUNK_RECORDS, CHUNK_BYTES)
        for start, stop in pairwise([*starts, len(rows)]):
            yield RawChunk(source, raw, rows.slice(start, stop - start))


def _cuts(sizes: Sequence[int], most: int, most_size: int) -> list[int]:
    """Where pieces begin that hold at most `most` items and, unless one item is larger, `most_size` in all."""
    starts: list[int] = []
    room = 0
    for row, size in enumerate(sizes):
        if not starts or row - starts[-1] == most or size > room:
            starts.append(row)
            room = most_size
        room -= size
    return starts


def _drop_duplicates(
    documents: Documents,
    step: str,
    ledger: Ledger,
    clusters: Sequence,
    kinds: Mapping[str, str],
    whole: WholeRules,
) -> None:
    """Keep the best member of each cluster; its signals say how many copies there were."""
    rank = {kind: place for place, kind in enumerate(whole.kind_priority)}
    priorities = [rank.get(kinds[source], len(rank)) for source in documents.sources]
    quality = [facts["quality"] for facts in documents.facts]
    keep = dedup.best_of(clusters, priorities, quality, documents.keys)
    sizes = Counter(clusters)
    winners = {clusters[row]: documents.keys[row].split("/", 2)[1] for row, kept in enumerate(keep) if kept}
    for row, cluster in enumerate(clusters):
        if sizes[cluster] > 1:
            documents.facts[row][f"{step}_copies"] = float(sizes[cluster])
    reasons = ["" if kept else f"{step} duplicate of {winners[clusters[row]]}" for row, kept in enumerate(keep)]
    documents.narrow(step, ledger, documents.texts, reasons)


def _exact(documents: Documents) -> list[str]:
    return [dedup.exact_key(text) for text in documents.texts]


def _near(documents: Documents, kinds: Mapping[str, str], whole: WholeRules) -> list[int]:
    values, usable = signature_matrix(documents.table)
    usable &= np.array([kinds[source] in whole.near_kinds for source in documents.sources], dtype=bool)
    return dedup.near_clusters(values, usable, documents.keys, whole.near_similarity).tolist()


def _drop_lines(documents: Documents, kinds: Mapping[str, str], whole: WholeRules, ledger: Ledger) -> int:
    after = list(documents.texts)
    reasons = [""] * len(after)
    dropped = 0
    for kind in whole.line_kinds:
        rows = [row for row, source in enumerate(documents.sources) if kinds[source] == kind]
        lines = dedup.repeated_lines([documents.texts[row] for row in rows], whole.most_line_documents)
        dropped += len(lines)
        for row in rows:
            after[row] = dedup.drop_lines(documents.texts[row], lines)
            if len(after[row]) < SHORTEST_AFTER_LINES and after[row] != documents.texts[row]:
                reasons[row] = "little left without repeated lines"
    documents.narrow("lines", ledger, after, reasons)
    return dropped


def _decontaminate(
    documents: Documents,
    tasks: Sequence[Task],
    least: float,
    ledger: Ledger,
    report: Callable[..., None],
    pool: Workers,
) -> dict[str, Any]:
    index = TaskIndex(tasks)
    reasons = [""] * len(documents.texts)
    starts = _cuts([len(text) for text in documents.texts], PROBE_DOCUMENTS, PROBE_CHARACTERS)
    batches = [documents.texts[start:stop] for start, stop in pairwise([*starts, len(documents.texts)])]
    hits: list[Hit] = []
    for number, found in enumerate(pool.map(partial(index.find, least=least), batches)):
        report(0.82 + 0.15 * number / len(batches), 1, "", "looking for evaluation tasks")
        for hit in found:
            row = starts[number] + hit.row
            hits.append(hit)
            reasons[row] = f"{hit.benchmark} task {hit.task_id}, score {hit.score}"
    documents.narrow("decontaminate", ledger, documents.texts, reasons)
    unprobed = index.unprobed()
    families = Counter(task.family for task in tasks)
    return {
        "score": least,
        "benchmarks": {
            family: {
                "tasks": families[family],
                "too_short_to_probe": unprobed.get(family, 0),
                "found": len({hit.task_id for hit in hits if hit.benchmark == family}),
                "documents": sum(hit.benchmark == family for hit in hits),
            }
            for family in sorted(families)
        },
    }


def _write(out: Path, table: pa.Table, ledger: Ledger, facts: Mapping[str, Any]) -> None:
    for folder in ("documents", "rejects"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    sources = np.array(table.column("source").to_pylist(), dtype=object)
    for name in sorted(facts):
        chosen = table.take(np.flatnonzero(sources == name))
        pq.write_table(chosen, out / "documents" / f"{name}.parquet", compression="zstd")
        pq.write_table(ledger.reject_table(name), out / "rejects" / f"{name}.parquet", compression="zstd")
    _write_json(out / "funnel.json", ledger.funnel(STEPS))
    _write_json(out / "sources.json", facts)


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = round(now - self._last, 3), now
