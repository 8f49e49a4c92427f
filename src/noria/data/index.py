"""The raw-data artifact: packed files, and an index that says where each record lies.

Whatever the source, a record is a byte range of a file: a gzip member of a WARC, a member of an uncompressed tar, or
lines of a JSON-lines file. The index is made by reading the packed file back, so what it lists can be read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from noria.data.extract import Format
from noria.data.readers import (
    Broken,
    Found,
    Record,
    archive_members,
    read_dialogues,
    read_lines,
    read_verses,
    read_warc,
    write_tar,
    write_warc,
)
from noria.data.synthetic import json_lines
from noria.types import digest

PLACE = [("file", pa.string()), ("offset", pa.int64()), ("length", pa.int64())]
INDEX_SCHEMA = pa.schema([("id", pa.string()), ("source", pa.string()), ("name", pa.string()), *PLACE])
BROKEN_SCHEMA = pa.schema([("source", pa.string()), ("name", pa.string()), *PLACE, ("reason", pa.string())])
LINE_READERS = {"jsonl": read_lines, "verses": read_verses}


class RawIndex:
    """Collects the records of all sources under `content`; `write` finishes the artifact."""

    def __init__(self, content: Path, most_record_bytes: int) -> None:
        self.content, self.most = content, most_record_bytes
        self.records: list[tuple[str, str, str, str, int, int]] = []
        self.broken: list[tuple[str, str, str, int, int, str]] = []
        self.sources: dict[str, dict[str, Any]] = {}
        (content / "files").mkdir(parents=True, exist_ok=True)

    def add_archive(
        self,
        archive: Path,
        *,
        name: str,
        kind: str,
        format: Format,
        licence: str,
        language: str = "",
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        most_records: int | None = None,
        pin: dict[str, Any],
    ) -> None:
        """Pack the chosen members of `archive` and index their records; what can't be read is set aside, counted."""
        members: list[Record] = []
        for item in archive_members(archive, include, exclude, self._most_member(format)):
            if isinstance(item, Broken):
                self.broken.append((name, item.name, archive.name, item.offset, item.length, item.reason))
            elif not item.raw.strip():
                self.broken.append((name, item.name, archive.name, item.offset, item.length, "empty"))
            else:
                members.append(item)
        if format not in LINE_READERS:
            members = members[:most_records]
        before = len(self.records), len(self.broken)
        for path, found in self._pack(name, format, members, pin):
            self._index(name, path, found, most_records)
        self._account(name, kind, format, licence, language, pin, sum(len(item.raw) for item in members), before)

    def add_synthetic(self, name: str, pairs: Iterable[tuple[str, str]], licence: str) -> None:
        """Worked examples as a source of kind "synthetic": one JSON line each."""
        path = self.content / "files" / f"{name}.jsonl"
        raw = json_lines(pairs)
        path.write_bytes(raw)
        before = len(self.records), len(self.broken)
        self._index(name, path, read_lines(path, self.most), None)
        self._account(name, "synthetic", "jsonl", licence, "en", {"generator": "noria.evals.tasks"}, len(raw), before)

    def write(self) -> dict[str, Any]:
        """Write index, rejects and sources; give the metrics of the artifact."""
        for file, schema, rows in (
            ("index.parquet", INDEX_SCHEMA, self.records),
            ("rejects.parquet", BROKEN_SCHEMA, self.broken),
        ):
            columns = list(zip(*rows, strict=True)) or [()] * len(schema)
            table = pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
            pq.write_table(table, self.content / file, compression="zstd")
        text = json.dumps(self.sources, indent=1, sort_keys=True, ensure_ascii=False)
        (self.content / "sources.json").write_text(text + "\n", encoding="utf-8")
        kinds = {source["kind"] for source in self.sources.values()}
        return {
            "sources": len(self.sources),
            "records": len(self.records),
            "set_aside": len(self.broken),
            "raw_bytes": sum(source["raw_bytes"] for source in self.sources.values()),
            "raw_bytes_by_kind": {
                kind: sum(source["raw_bytes"] for source in self.sources.values() if source["kind"] == kind)
                for kind in sorted(kinds)
            },
        }

    def _most_member(self, format: Format) -> int:
        """A file of lines holds many records, so only its lines are bounded by the record limit."""
        return self.most * 1000 if format in LINE_READERS else self.most

    def _pack(
        self, name: str, format: Format, members: list[Record], pin: dict[str, Any]
    ) -> Iterable[tuple[Path, Found]]:
        files = self.content / "files"
        if format == "html":
            path = files / f"{name}.warc.gz"
            prefix = f"urn:package:{pin['name']}:{pin['version']}#" if "version" in pin else f"urn:archive:{name}#"
            write_warc(path, ((prefix + item.name, item.raw) for item in members))
            yield path, read_warc(path, self.most)
        elif format in LINE_READERS:
            for number, item in enumerate(members):
                path = files / (f"{name}.jsonl" if number == 0 else f"{name}.{number}.jsonl")
                path.write_bytes(item.raw)
                yield path, LINE_READERS[format](path, self.most)
        else:
            path = files / f"{name}.tar"
            packed = write_tar(path, ((item.name, item.raw) for item in members))
            yield path, _dialogues(packed) if format == "dialogues" else iter(packed)

    def _index(self, name: str, path: Path, found: Found, most_records: int | None) -> None:
        file = path.relative_to(self.content).as_posix()
        taken = 0
        for item in found:
            if taken == most_records:
                break
            if isinstance(item, Broken):
                self.broken.append((name, item.name, file, item.offset, item.length, item.reason))
            else:
                self.records.append((digest(name, item.raw), name, item.name, file, item.offset, item.length))
                taken += 1

    def _account(
        self,
        name: str,
        kind: str,
        format: Format,
        licence: str,
        language: str,
        pin: dict[str, Any],
        raw_bytes: int,
        before: tuple[int, int],
    ) -> None:
        self.sources[name] = {
            "kind": kind,
            "format": format,
            "licence": licence,
            "language": language,
            "pin": pin,
            "raw_bytes": raw_bytes,
            "records": len(self.records) - before[0],
            "set_aside": len(self.broken) - before[1],
        }


def _dialogues(members: Iterable[Record]) -> Found:
    for item in members:
        yield from read_dialogues(item)
