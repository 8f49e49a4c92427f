"""One chunk of raw records to clean documents: extract, language, quality, personal data, safety.

Pure functions of a chunk, so that chunks may run anywhere in any order. What needs the whole corpus (language
thresholds, duplicates, contamination) happens between and after them, in stage 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from noria.data import language, quality
from noria.data.dedup import SIGNATURE, signatures
from noria.data.documents import DOCUMENT_SCHEMA
from noria.data.extract import Format, NoText, extract
from noria.data.ledger import Ledger
from noria.data.pii import redact
from noria.data.quality import RULES, QualityRules
from noria.data.readers import Broken, parse_warc_block
from noria.data.safety import unsafe_counts, unsafe_reason
from noria.types import digest

STEPS = ("extract", "language", "quality", "pii", "safety", "exact", "near", "lines", "decontaminate")
# Signals of quality that are kept with a document; the others can be measured again from its text.
KEPT_SIGNALS = ("words", "letter_words", "duplicate_lines", "sentences")
CLEAN_SCHEMA = DOCUMENT_SCHEMA.append(pa.field("signature", pa.binary()))


class CleanRules(BaseModel):
    """What a document must be like to stay."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    languages: tuple[str, ...] = Field(default=(), description="ISO 639 codes to keep; empty keeps all that are sure")
    quality: dict[str, QualityRules] = Field(default={}, description="rules that replace the built-in ones of a kind")
    unsafe_phrases: int = Field(default=3, ge=1, description="least phrases of a category that make a document unsafe")
    unsafe_per_thousand_words: float = Field(default=2.0, ge=0, description="and at least so many per 1,000 words")

    def of(self, kind: str) -> QualityRules:
        return self.quality.get(kind) or RULES[kind]


@dataclass(frozen=True)
class Source:
    """What all documents of a source share. A declared `language` is believed; "" means: find out for each document."""

    name: str
    kind: str
    licence: str
    format: Format
    language: str = ""


@dataclass(frozen=True)
class RawChunk:
    """Some records of one source: rows (id, file, offset, length) of the raw-data index, files below `folder`."""

    source: Source
    folder: Path
    rows: pa.Table


@dataclass(frozen=True)
class TextChunk:
    """Extracted texts of one source with their language, before anything is judged."""

    source: Source
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    origins: tuple[tuple[str, int, int], ...]
    languages: tuple[str, ...]
    scores: np.ndarray
    ledger: Ledger


@dataclass(frozen=True)
class CleanJob:
    chunk: TextChunk
    least: Mapping[str, float]
    rules: CleanRules


def extract_chunk(chunk: RawChunk) -> TextChunk:
    """Read each record at its offset, extract its text, tell its language. What gives no text is booked as rejected."""
    source, ledger = chunk.source, Ledger()
    ids, texts, origins = [], [], []
    for row in chunk.rows.to_pylist():
        try:
            raw = read_record(chunk.folder / row["file"], row["offset"], row["length"], source.format)
            text = extract(raw, source.format)
        except NoText as error:
            ledger.passed("extract", source.name, language.UNKNOWN, row["length"], None)
            ledger.rejected("extract", source.name, language.UNKNOWN, row["id"], str(error), "")
            continue
        ledger.passed("extract", source.name, language.UNKNOWN, len(raw), len(text.encode("utf-8", "replace")))
        ids.append(row["id"])
        texts.append(text)
        origins.append((row["file"], row["offset"], row["length"]))
    if source.language:
        languages, scores = [source.language] * len(texts), np.ones(len(texts))
    else:
        languages, scores = language.detect(texts)
    return TextChunk(source, tuple(ids), tuple(texts), tuple(origins), tuple(languages), scores, ledger)


def read_record(path: Path, offset: int, length: int, kind: Format) -> bytes:
    """The raw bytes of one record of the raw-data artifact. Raises NoText if they are no longer readable."""
    import gzip
    import zlib

    with path.open("rb") as file:
        file.seek(offset)
        raw = file.read(length)
    if kind != "html":
        return raw
    try:
        found = next(iter(parse_warc_block(gzip.decompress(raw), path.name, offset, length)), None)
    except (OSError, EOFError, zlib.error) as error:
        raise NoText(f"broken gzip member: {error}") from error
    if found is None or isinstance(found, Broken):
        raise NoText(found.reason if isinstance(found, Broken) else "no response record")
    return found.raw


def clean_chunk(job: CleanJob) -> tuple[pa.Table, Ledger]:
    """Language, quality, PII and safety of a chunk: the documents that stay (CLEAN_SCHEMA), and the ledger."""
    chunk, rules, ledger = job.chunk, job.rules, Ledger()
    source = chunk.source
    texts, ids, tongues = list(chunk.texts), list(chunk.ids), list(chunk.languages)
    rows = list(range(len(ids)))

    def book(step: str, after: Sequence[str], reasons: Sequence[str]) -> list[int]:
        nonlocal rows, texts
        kept = ledger.step(step, source.name, [tongues[r] for r in rows], [ids[r] for r in rows], texts, after, reasons)
        rows, texts = [rows[row] for row in kept], [after[row] for row in kept]
        return kept

    wanted = () if source.language else rules.languages
    least = {**job.least, **({source.language: 0.0} if source.language else {})}
    book("language", texts, language.reject_reasons(tongues, chunk.scores, least, wanted))

    judged = rules.of(source.kind)
    if source.kind == "crawl":
        texts = [quality.drop_page_lines(text) for text in texts]
    signals, words = quality.measure(texts, repetition=judged.repetition is not None)
    english = np.array([tongues[row] == "en" for row in rows], dtype=bool)
    reasons = quality.quality_reasons(signals, judged, english)
    if judged.reject_generated:
        reasons = [
            why or ("generated" if quality.generated(text) else "") for why, text in zip(reasons, texts, strict=True)
        ]
    marks, usable = signatures(words)
    marks_of = {row: marks[place].tobytes() if usable[place] else b"" for place, row in enumerate(rows)}
    best = quality.score(signals)
    facts = {
        row: {"quality": float(best[place]), **{name: float(signals[name][place]) for name in KEPT_SIGNALS}}
        for place, row in enumerate(rows)
    }
    book("quality", texts, reasons)

    redacted = [redact(text) for text in texts]
    for row, (_, found) in zip(rows, redacted, strict=True):
        facts[row] |= {f"pii_{kind}": float(count) for kind, count in found.items()}
    book("pii", [text for text, _ in redacted], [""] * len(texts))

    counted = [unsafe_counts(text) for text in texts]
    for row, found in zip(rows, counted, strict=True):
        facts[row] |= {f"unsafe_{kind}": float(count) for kind, count in found.items()}
    limits = (rules.unsafe_phrases, rules.unsafe_per_thousand_words)
    book("safety", texts, [unsafe_reason(text, found, *limits) for text, found in zip(texts, counted, strict=True)])
    for row in rows:
        facts[row]["language_score"] = float(np.round(chunk.scores[row], 4))
    return _table(chunk, rows, texts, [facts[row] for row in rows], [marks_of[row] for row in rows]), ledger


def signature_matrix(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """(D, P) MinHash signatures of CLEAN_SCHEMA rows, and which rows have one."""
    raws = table.column("signature").to_pylist()
    usable = np.array([bool(raw) for raw in raws], dtype=bool)
    blank = b"\0" * (4 * SIGNATURE)
    joined = b"".join(raw or blank for raw in raws)
    return np.frombuffer(joined, np.uint32).reshape(len(raws), SIGNATURE), usable


def signal_map(facts: Sequence[Mapping[str, float]]) -> pa.Array:
    return pa.array([sorted(row.items()) for row in facts], DOCUMENT_SCHEMA.field("signals").type)


def _table(
    chunk: TextChunk,
    rows: Sequence[int],
    texts: Sequence[str],
    facts: Sequence[Mapping[str, float]],
    marks: Sequence[bytes],
) -> pa.Table:
    source = chunk.source
    origins = [dict(zip(("file", "offset", "length"), chunk.origins[row], strict=True)) for row in rows]
    columns = [
        pa.array([chunk.ids[row] for row in rows], pa.string()),
        pa.array([digest(text) for text in texts], pa.string()),
        pa.array([text.encode("utf-8", "replace").decode() for text in texts], pa.large_string()),
        pa.array([source.name] * len(rows), pa.string()),
        pa.array([source.licence] * len(rows), pa.string()),
        pa.array([chunk.languages[row] for row in rows], pa.string()),
        pa.array(origins, DOCUMENT_SCHEMA.field("origin").type),
        signal_map(facts),
        pa.array(marks, pa.binary()),
    ]
    return pa.table(columns, schema=CLEAN_SCHEMA)
