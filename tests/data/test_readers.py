from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile

import pytest

from noria.data.extract import NoText, extract
from noria.data.readers import (
    Broken,
    Record,
    archive_members,
    read_dialogues,
    read_lines,
    read_verses,
    read_warc,
    write_tar,
    write_warc,
)

MOST = 100_000
PAGES = [(f"urn:page:{n}", b"<html><body><p>page %d</p></body></html>" % n * (n + 1)) for n in range(4)]


def split(found):
    items = list(found)
    return [i for i in items if isinstance(i, Record)], [i for i in items if isinstance(i, Broken)]


@pytest.fixture
def warc(tmp_path):
    path = tmp_path / "pages.warc.gz"
    write_warc(path, PAGES)
    return path


def test_warc_round_trips_and_each_range_is_a_whole_member(warc):
    records, broken = split(read_warc(warc, MOST))
    assert not broken
    assert [(record.name, record.raw) for record in records] == PAGES
    data = warc.read_bytes()
    for record, (url, html) in zip(records, PAGES, strict=True):
        member = gzip.decompress(data[record.offset : record.offset + record.length])
        assert member.startswith(b"WARC/1.") and url.encode() in member and html in member


def test_equal_pages_give_equal_warc_bytes(warc, tmp_path):
    write_warc(tmp_path / "again.warc.gz", PAGES)
    assert (tmp_path / "again.warc.gz").read_bytes() == warc.read_bytes()


def test_truncated_warc_gives_what_is_whole(warc):
    warc.write_bytes(warc.read_bytes()[:-20])
    records, broken = split(read_warc(warc, MOST))
    assert [record.name for record in records] == [url for url, _ in PAGES[:3]]
    assert [item.reason for item in broken] == ["truncated gzip member"]


def test_reading_goes_on_after_a_damaged_record(warc):
    whole, _ = split(read_warc(warc, MOST))
    data = bytearray(warc.read_bytes())
    data[whole[1].offset + 15] ^= 0xFF
    warc.write_bytes(data)
    records, broken = split(read_warc(warc, MOST))
    assert [record.name for record in records] == [PAGES[0][0], PAGES[2][0], PAGES[3][0]]
    assert len(broken) == 1 and broken[0].offset == whole[1].offset and "gzip" in broken[0].reason


def test_a_member_that_is_no_warc_record_is_set_aside(warc):
    warc.write_bytes(gzip.compress(b"hello\r\n\r\nworld", mtime=0) + warc.read_bytes())
    records, broken = split(read_warc(warc, MOST))
    assert len(records) == len(PAGES)
    assert "broken record" in broken[0].reason


def test_a_record_shorter_than_it_says_is_truncated(tmp_path):
    path = tmp_path / "short.warc.gz"
    write_warc(path, PAGES[:1])
    block = gzip.decompress(path.read_bytes()).rstrip(b"\r\n")[:-5]
    path.write_bytes(gzip.compress(block, mtime=0))
    records, broken = split(read_warc(path, MOST))
    assert not records and "truncated" in broken[0].reason


def test_huge_records_are_set_aside(warc):
    records, broken = split(read_warc(warc, 450))
    assert broken and all("over 450 bytes" in item.reason for item in broken)
    assert len(records) + len(broken) == len(PAGES)


def test_no_gzip_at_all(tmp_path):
    path = tmp_path / "x.warc.gz"
    path.write_bytes(b"not a gzip file" * 10)
    assert [item.reason[:18] for item in split(read_warc(path, MOST))[1]] == ["broken gzip member"]
    path.write_bytes(b"")
    assert list(read_warc(path, MOST)) == []


def test_tar_ranges_point_at_the_bytes(tmp_path):
    path = tmp_path / "a.tar"
    members = [("b.md", b"second"), ("a.md", b"first"), ("c.txt", b"no")]
    write_tar(path, members)
    records, _ = split(archive_members(path, ["*.md"], [], MOST))
    assert [(record.name, record.raw) for record in records] == [("a.md", b"first"), ("b.md", b"second")]
    data = path.read_bytes()
    assert [data[record.offset : record.offset + record.length] for record in records] == [b"first", b"second"]


def test_truncated_tar_gz_gives_what_came_before(tmp_path):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for number in range(3):
            info = tarfile.TarInfo(f"{number}.txt")
            raw = bytes((number * 7 + i * i) % 251 for i in range(30_000))
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.9)])
    records, broken = split(archive_members(path, ["*.txt"], [], MOST))
    assert len(records) < 3 and len(broken) == 1


def test_zip_with_a_damaged_member(tmp_path):
    path = tmp_path / "a.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.md", "aaaa" * 100)
        archive.writestr("b.md", "bbbb" * 100)
        archive.writestr("big.md", "x" * (MOST + 1))
    data = bytearray(path.read_bytes())
    data[data.index(b"bbbb")] ^= 1
    path.write_bytes(data)
    records, broken = split(archive_members(path, ["*.md"], [], MOST))
    assert [record.name for record in records] == ["a.md"]
    assert {item.name for item in broken} == {"b.md", "big.md"}
    path.write_bytes(b"PK broken")
    assert "broken zip" in split(archive_members(path, ["*"], [], MOST))[1][0].reason


def test_lines_that_are_no_objects_are_named(tmp_path):
    path = tmp_path / "a.jsonl"
    good = json.dumps({"text": "hello"}).encode()
    path.write_bytes(good + b"\n{broken\n\n[1]\n\xff\xfe\n" + good)
    records, broken = split(read_lines(path, MOST))
    assert [record.name for record in records] == ["a.jsonl:1", "a.jsonl:6"]
    assert [item.name for item in broken] == ["a.jsonl:2", "a.jsonl:4", "a.jsonl:5"]
    data = path.read_bytes()
    assert all(data[record.offset : record.offset + record.length] == record.raw for record in records)


def test_verses_join_into_chapters(tmp_path):
    path = tmp_path / "v.jsonl"
    rows = [{"book": "A", "chapter": c, "text": f"v{v}"} for c in (1, 2) for v in range(3)]
    path.write_text("\n".join(map(json.dumps, [*rows, {"text": "lost"}])))
    records, broken = split(read_verses(path, MOST))
    assert [record.name for record in records] == ["A 1", "A 2"]
    assert extract(records[1].raw, "verses") == "v0\nv1\nv2"
    assert "needs book" in broken[0].reason


def test_dialogues_are_ranges_of_lines():
    raw = "categories:\n- x\nconversations:\n- - Hé?\n  - Yes.\n- - A\n  - |\n    two\n    lines\n".encode()
    records, broken = split(read_dialogues(Record("t.yml", 100, len(raw), raw)))
    assert not broken
    assert [extract(record.raw, "dialogues") for record in records] == ["- Hé?\n- Yes.", "- A\n- two\nlines"]
    assert all(raw[r.offset - 100 : r.offset - 100 + r.length] == r.raw for r in records)
    for bad in (b"a: [", b"a: 1", b"\xff", b"- 1"):
        assert split(read_dialogues(Record("t.yml", 0, len(bad), bad)))[1]


def test_extraction_says_why_there_is_no_text():
    for raw, kind, reason in [
        (b"  \n", "text", "empty"),
        (b"abc\xff\xfe", "markdown", "not UTF-8 at byte 3"),
        (b"<html><body></body></html>", "html", "no text"),
        (b"plain", "html", "not HTML"),
        (b'{"a": 1}', "jsonl", 'no "text"'),
    ]:
        with pytest.raises(NoText, match=reason):
            extract(raw, kind)


def test_html_in_another_encoding_is_read():
    page = "<html><head><meta charset='iso-8859-1'></head><body><p>Ein schöner Tag für Füße.</p></body></html>"
    assert "schöner" in extract(page.encode("latin-1"), "html")


def test_main_content_of_a_page_without_its_navigation():
    text = "This paragraph is the reason for the page, and it says several things at some length. " * 5
    page = f"<html><body><nav><ul><li><a href='/'>Home</a></li></ul></nav><main><p>{text}</p></main></body></html>"
    assert extract(page.encode(), "html").startswith("This paragraph")


def test_markdown_and_python_lose_what_is_not_theirs():
    source = b"# x ![pic](a.png) [link](http://b)\n<!-- note -->\nText"
    assert extract(source, "markdown") == "# x pic link\n\nText"
    assert extract(b"# Copyright me\n# licensed\n\nimport os\n", "python") == "import os"
    assert extract(b"# what this is\nimport os\n", "python").startswith("# what")
