"""Records of raw files, one at a time, each with where it lies; and writers of the packed forms that stage 1 keeps.

A file that is partly broken gives the records that can be read and a `Broken` for each place that can't; nothing is
raised for bad content. `.warc.gz` (a gzip member a record), `.tar` (uncompressed, so a member is a byte range), lines
of JSON, and dialogues in YAML.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from noria.types import digest

# The archives are packed again from pinned packages, so a date would only say when; a fixed one keeps bytes equal.
WARC_DATE = "2026-01-01T00:00:00Z"
GZIP_MAGIC = b"\x1f\x8b\x08"


@dataclass(frozen=True)
class Record:
    """Raw bytes of one record and its byte range in its file (of the compressed member, for WARC)."""

    name: str
    offset: int
    length: int
    raw: bytes


@dataclass(frozen=True)
class Broken:
    """A place that could not be read, with the reason."""

    name: str
    offset: int
    length: int
    reason: str


Found = Iterator[Record | Broken]


def archive_members(path: Path, include: Iterable[str], exclude: Iterable[str], most_bytes: int) -> Found:
    """Members of a tar, tar.gz, zip or wheel (or the one plain file) whose path matches `include`, in name order."""
    wanted, unwanted = tuple(include), tuple(exclude)

    def chosen(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in wanted) and not any(fnmatch(name, p) for p in unwanted)

    if path.suffix in (".whl", ".zip"):
        found = _zip_members(path, chosen, most_bytes)
    elif ".tar" in path.name or path.suffix == ".tgz":
        found = _tar_members(path, chosen, most_bytes)
    else:
        raw = path.read_bytes()
        found = iter([Record(path.name, 0, len(raw), raw)])
    yield from sorted(found, key=lambda item: (item.name, item.offset))


def _zip_members(path: Path, chosen: Callable[[str], bool], most_bytes: int) -> Found:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.is_dir() or not chosen(member.filename):
                    continue
                if member.file_size > most_bytes:
                    yield Broken(member.filename, member.header_offset, member.file_size, f"over {most_bytes} bytes")
                    continue
                try:
                    yield Record(member.filename, member.header_offset, member.file_size, archive.read(member))
                except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError) as error:
                    yield Broken(member.filename, member.header_offset, member.compress_size, f"broken: {error}")
    except (zipfile.BadZipFile, OSError) as error:
        yield Broken(path.name, 0, path.stat().st_size, f"broken zip: {error}")


def _tar_members(path: Path, chosen: Callable[[str], bool], most_bytes: int) -> Found:
    offset = 0
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                offset = member.offset_data
                if not member.isfile() or not chosen(member.name):
                    continue
                if member.size > most_bytes:
                    yield Broken(member.name, offset, member.size, f"over {most_bytes} bytes")
                    continue
                file = archive.extractfile(member)
                raw = file.read() if file else b""
                if len(raw) != member.size:
                    yield Broken(member.name, offset, len(raw), "truncated")
                else:
                    yield Record(member.name, offset, member.size, raw)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        yield Broken(path.name, offset, 0, f"the archive ends here: {error}")


# -- WARC --


def write_warc(path: Path, pages: Iterable[tuple[str, bytes]]) -> None:
    """(URL, HTML) as response records, each a gzip member; equal pages give equal bytes."""
    from fastwarc.warc import WarcRecord, WarcRecordType

    with path.open("wb") as file:
        for url, html in pages:
            record = WarcRecord()
            record.init_headers(WarcRecordType.response, record_urn=f"uuid:{_uuid(url, html)}".encode())
            record.headers["WARC-Date"] = WARC_DATE
            record.headers["WARC-Target-URI"] = url
            record.headers["Content-Type"] = "application/http; msgtype=response"
            head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(html)}\r\n\r\n"
            record.set_bytes_content(head.encode() + html)
            block = io.BytesIO()
            record.write(block)
            file.write(gzip.compress(block.getvalue(), 6, mtime=0))


def _uuid(url: str, html: bytes) -> str:
    name = digest(url, html)
    return "-".join((name[:8], name[8:12], name[12:16], name[16:20], name[20:]))


def read_warc(path: Path, most_bytes: int) -> Found:
    """HTML of the response records of a .warc.gz. A broken member is skipped: reading goes on at the next whole one."""
    data = path.read_bytes()
    offset = 0
    while offset < len(data):
        block, length, trouble = _member(data, offset, most_bytes)
        if trouble:
            after = _next_member(data, offset + 1)
            yield Broken(path.name, offset, (after or len(data)) - offset, trouble)
            if after is None:
                return
            offset = after
            continue
        yield from parse_warc_block(block, path.name, offset, length)
        offset += length


def parse_warc_block(block: bytes, name: str, offset: int, length: int) -> Found:
    """The response records of one decompressed gzip member. `raw` is the payload, without the HTTP head."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    try:
        for record in ArchiveIterator(io.BytesIO(block), record_types=WarcRecordType.response, parse_http=False):
            body = record.reader.read()
            url = record.headers.get("WARC-Target-URI") or name
            head, found, html = body.partition(b"\r\n\r\n")
            if len(body) != record.content_length:
                yield Broken(url, offset, length, f"truncated: {len(body)} of {record.content_length} bytes")
            elif not found or not head.startswith(b"HTTP/"):
                yield Broken(url, offset, length, "response without an HTTP head")
            else:
                yield Record(url, offset, length, html)
    except (OSError, ValueError) as error:
        yield Broken(name, offset, length, f"broken record: {error}")


def _member(data: bytes, offset: int, most_bytes: int) -> tuple[bytes, int, str]:
    """(content, compressed length, trouble) of the gzip member at `offset`; trouble is "" when it is whole."""
    inflate = zlib.decompressobj(31)
    try:
        block = inflate.decompress(memoryview(data)[offset:], most_bytes + 1)
    except zlib.error as error:
        return b"", 0, f"broken gzip member: {error}"
    if len(block) > most_bytes:
        return b"", 0, f"over {most_bytes} bytes"
    if not inflate.eof:
        return b"", 0, "truncated gzip member"
    return block, len(data) - offset - len(inflate.unused_data), ""


def _next_member(data: bytes, start: int) -> int | None:
    """The next offset where a gzip member begins that holds a WARC record."""
    while (start := data.find(GZIP_MAGIC, start)) >= 0:
        try:
            if zlib.decompressobj(31).decompress(data[start : start + 4096], 5) == b"WARC/":
                return start
        except zlib.error:
            pass  # the magic bytes occur inside compressed data: look on
        start += 1
    return None


# -- uncompressed tar, JSON lines, YAML dialogues --


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> list[Record]:
    """An uncompressed tar without owners or dates (equal members give equal bytes); where each member's bytes lie."""
    records = []
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, raw in members:
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
            padded = -(-len(raw) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            records.append(Record(name, archive.offset - padded, len(raw), raw))
    return records


def read_lines(path: Path, most_bytes: int) -> Found:
    """The lines of a JSON-lines file that hold an object; others are Broken, named by line number."""
    for item, _ in _objects(path, most_bytes):
        yield item


def read_verses(path: Path, most_bytes: int) -> Found:
    """Runs of lines with the same book and chapter, each run one record (a chapter is a document, a verse is not)."""
    group: list[Record] = []
    label = ""
    for item, row in _objects(path, most_bytes):
        if isinstance(item, Broken):
            yield item
            continue
        if not {"book", "chapter", "text"} <= row.keys():
            yield Broken(item.name, item.offset, item.length, "a verse needs book, chapter and text")
            continue
        fresh = f"{row['book']} {row['chapter']}"
        if group and fresh != label:
            yield _joined(label, group)
            group = []
        label = fresh
        group.append(item)
    if group:
        yield _joined(label, group)


def _objects(path: Path, most_bytes: int) -> Iterator[tuple[Record | Broken, dict[str, Any]]]:
    offset = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            name, length = f"{path.name}:{number}", len(raw)
            if length > most_bytes:
                yield Broken(name, offset, length, f"over {most_bytes} bytes"), {}
            elif raw.strip():
                try:
                    row = json.loads(raw.decode("utf-8"))
                    if not isinstance(row, dict):
                        raise ValueError("not an object")
                    yield Record(name, offset, length, raw), row
                except ValueError as error:  # also wrong encoding and broken JSON
                    yield Broken(name, offset, length, f"not a JSON object: {error}"), {}
            offset += length


def _joined(name: str, group: list[Record]) -> Record:
    first, last = group[0], group[-1]
    return Record(name, first.offset, last.offset + last.length - first.offset, b"".join(item.raw for item in group))


def read_dialogues(member: Record) -> Found:
    """The items of `conversations:` in a YAML file, each one record: the byte range of its lines."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        root = yaml.compose(member.raw.decode("utf-8"), Loader=loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        yield Broken(member.name, member.offset, member.length, f"not YAML in UTF-8: {reason}")
        return
    edges = [0]
    for line in member.raw.splitlines(keepends=True):
        edges.append(edges[-1] + len(line))
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    talks = next((value for key, value in pairs if key.value == "conversations"), None)
    if not isinstance(talks, yaml.SequenceNode):
        yield Broken(member.name, member.offset, member.length, "no list of conversations")
        return
    for number, talk in enumerate(talks.value):
        start = edges[talk.start_mark.line]
        stop = edges[min(talk.end_mark.line + (talk.end_mark.column > 0), len(edges) - 1)]
        stop = max(stop, edges[min(talk.start_mark.line + 1, len(edges) - 1)])
        raw = member.raw[start:stop]
        yield Record(f"{member.name}#{number}", member.offset + start, len(raw), raw)
