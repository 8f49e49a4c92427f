"""Traces kept as blocks: equal when read again, each token once, and readable around whatever was damaged."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from noria.harness.traces import Damage, Entry, Library, Query, TraceFileError, TraceWriter, build_index, load, save
from noria.harness.traces.blocks import pack, unpack
from noria.harness.traces.log import MARK, walk
from noria.harness.traces.tokens import TokenPool, sequence_of
from tests.harness.made_up_traces import entry, long_trace, task, with_sub_agents


def written(folder: Path, *calls: list[Entry]) -> Path:
    with TraceWriter(folder, resume=True) as writer:
        for entries in calls:
            writer.append(entries)
    return folder / "traces.blocks"


def read(path: Path) -> tuple[list[Entry], list[Damage]]:
    found = [value for _, _, value in walk(path)]
    damages = [value for value in found if isinstance(value, Damage)]
    return [one for value in found if not isinstance(value, Damage) for one in value], damages


def test_what_is_packed_comes_back_equal():
    entries = [Entry(long_trace(), task()), with_sub_agents(), entry(1, None, step=4, model="x")]
    assert unpack(pack(entries)) == entries


def test_log_probabilities_come_back_to_the_last_bit():
    from dataclasses import replace

    one = entry(0)
    for values in ((0.1, -1e-300, float("-inf")), (-0.5, -0.25, 0.0)):
        node = replace(one.trace.nodes[1], call=replace(one.trace.nodes[1].call, logprobs=values))
        again = unpack(pack([replace(one, trace=replace(one.trace, nodes=(node,)))]))[0]
        assert again.trace.nodes[0].call.logprobs == values


def test_a_trace_of_many_turns_stores_its_prompt_once():
    pool, trace = TokenPool(), long_trace(20)
    calls = [node.call for node in trace.nodes if node.call]
    runs = [(pool.add(call.prompt_ids), pool.add(call.token_ids)) for call in calls]
    for call, (prompt, sampled) in zip(calls, runs, strict=True):
        assert sequence_of(pool.tokens, prompt) == call.prompt_ids
        assert sequence_of(pool.tokens, sampled) == call.token_ids
    distinct = 200 + 20 * (20 + 50)  # the first prompt, then what each turn samples and is told
    assert len(pool.tokens) <= distinct + 20
    assert sum(len(call.prompt_ids) for call in calls) > 10 * distinct
    assert max(len(prompt) for prompt, _ in runs) <= 3


def test_blocks_are_a_fraction_of_the_same_traces_as_lines(tmp_path):
    entries = [Entry(long_trace(seed=seed), task(seed), entry(seed).score) for seed in range(4)]
    path = written(tmp_path / "blocks", entries)
    save(tmp_path / "lines", load(tmp_path / "blocks"))
    assert path.stat().st_size * 5 < sum(file.stat().st_size for file in (tmp_path / "lines").iterdir())
    assert load(tmp_path / "lines") == load(tmp_path / "blocks")


def test_a_torn_last_block_is_told_the_rest_read_and_the_next_writer_cuts_it_off(tmp_path):
    path = written(tmp_path, [entry(0)], [entry(1)])
    whole = path.read_bytes()
    for cut in (1, 3, 30, len(whole) - whole.rindex(MARK) - 2):
        path.write_bytes(whole[:-cut])
        entries, damages = read(path)
        assert entries == [entry(0)] and len(damages) == 1 and "torn" in str(damages[0])
    written(tmp_path, [entry(2)])
    assert read(path) == ([entry(0), entry(2)], [])


def test_a_damaged_block_in_the_middle_is_named_and_the_others_are_read(tmp_path):
    path = written(tmp_path, [entry(0)], [entry(1)], [entry(2)])
    raw = bytearray(path.read_bytes())
    second = raw.index(MARK, 1)
    for place in (second + 3, second + len(MARK) + 2, second + 60):  # the mark, the length, the contents
        broken = raw.copy()
        broken[place] ^= 0xFF
        path.write_bytes(broken)
        entries, damages = read(path)
        assert entries == [entry(0), entry(2)]
        assert [damage.place for damage in damages] == [f"{path}, byte {second}"]
    with pytest.raises(TraceFileError, match=f"byte {second}"):
        load(tmp_path)


def test_a_second_writer_of_one_file_is_refused(tmp_path):
    with TraceWriter(tmp_path), pytest.raises(TraceFileError, match="another process"):
        TraceWriter(tmp_path)
    with TraceWriter(tmp_path), TraceWriter(tmp_path, "other") as other:
        other.append([entry(0)])


def test_what_is_there_is_only_appended_to_where_that_is_said(tmp_path):
    TraceWriter(tmp_path).close()
    path = written(tmp_path, [entry(0)])  # a file without traces is as good as new
    with pytest.raises(TraceFileError, match=r"traces\.blocks holds traces already: name a new folder, or"):
        TraceWriter(tmp_path)
    written(tmp_path, [entry(1)])
    assert read(path)[0] == [entry(0), entry(1)]


def test_a_run_that_goes_back_drops_what_it_makes_anew(tmp_path):
    path = written(
        tmp_path, [entry(step, step=step) for step in (0, 0, 1)], [entry(step, step=step) for step in (1, 2)]
    )
    with TraceWriter(tmp_path, resume=True) as writer:
        writer.rewind(5)
        writer.rewind(1)
        writer.append([entry(9, step=1)])
    assert read(path)[0] == [entry(0, step=0), entry(0, step=0), entry(9, step=1)]


KILLED = """
import sys, time
from pathlib import Path
from noria.harness.traces import TraceWriter
from tests.harness.made_up_traces import entry
writer = TraceWriter(Path(sys.argv[1]))
for number in range(10**6):
    writer.append([entry(number)])
    print(number, flush=True)
"""


@pytest.mark.slow
def test_what_was_appended_survives_kill_9(tmp_path):
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}"},
    )
    told = [int(process.stdout.readline()) for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    told += [int(line) for line in process.stdout if line.endswith("\n")]
    process.wait()
    process.stdout.close()
    entries, damages = read(tmp_path / "traces.blocks")
    assert entries[: len(told)] == [entry(number) for number in told]
    assert len(entries) <= len(told) + 1 and len(damages) <= 1


# -- the index --


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    numbers, tmp_path = range(200), tmp_path_factory.mktemp("library")
    written(tmp_path / "run", [entry(n, n % 4 / 3 if n % 7 else None, step=n // 10) for n in numbers])
    with Library(tmp_path / "run", tmp_path / "index.sqlite") as opened:
        yield opened


def by_hand(library, keep):
    return [number for number, one in library.entries() if keep(one)]


def numbers(library, **query):
    return [row["number"] for row in library.rows(Query(**query), 1000)]


def test_filters_find_what_a_reading_of_all_traces_finds(library):
    def tool(one):
        return one.trace.nodes[2].use.tool

    assert numbers(library, family="even") == by_hand(library, lambda one: one.task.family == "even")
    assert numbers(library, outcome="truncated") == by_hand(library, lambda one: one.trace.outcome == "truncated")
    assert numbers(library, status="failed") == by_hand(library, lambda one: one.score.status == "failed")
    assert numbers(library, tool="search") == by_hand(library, lambda one: tool(one) == "search")
    assert numbers(library, step_min=3, step_max=4) == by_hand(library, lambda one: one.labels["step"] in (3, 4))
    high = by_hand(library, lambda one: (one.score.value or 0) >= 0.5 and tool(one) == "read")
    assert numbers(library, score_min=0.5, tool="read") == high
    assert library.count(Query(score_min=0.5, tool="read")) == len(high)


def test_text_finds_words_and_their_beginnings_in_any_message(library):
    assert len(numbers(library, text="needle17 token")) == 11  # 17, and 170 to 179
    assert numbers(library, text="needle17 key17 find", family="odd") == by_hand(
        library, lambda one: one.task.family == "odd" and "needle17" in one.trace.nodes[2].message.content
    )
    assert numbers(library, text="absent") == []
    assert len(numbers(library, text='") OR "x* -- NEAR(')) == 0 and len(numbers(library, text="  ***  ")) == 200


def test_pages_follow_an_order_and_cover_everything_once(library):
    query = Query(order="score", descending=True)
    pages = [library.rows(query, 30, offset) for offset in range(0, 210, 30)]
    rows = [row for page in pages for row in page]
    assert sorted(row["number"] for row in rows) == sorted(numbers(library))
    scores = [row["score"] for row in rows]
    graded = [score for score in scores if score is not None]
    assert graded == sorted(graded, reverse=True) and scores[len(graded) :] == [None] * (len(scores) - len(graded))
    rising = [row["score"] for row in library.rows(Query(order="score"), 1000)]
    assert rising[: len(graded)] == graded[::-1]


def test_a_row_and_its_entry_are_of_one_trace(library):
    row = library.rows(Query(order="tokens"), 1, 120)[0]
    one = library.entry(row["number"])
    assert (row["id"], row["task"], row["outcome"]) == (one.trace.id, one.task.id, one.trace.outcome)
    assert row["components"] == dict(one.score.components) and row["labels"] == dict(one.labels)
    assert library.find(one.trace.id[:12]) == library.find(str(row["number"])) == row["number"]
    with pytest.raises(TraceFileError, match="no trace"):
        library.find("zz")
    with pytest.raises(TraceFileError, match="no trace number 999"):
        library.entry(999)


def test_facets_count_every_value(library):
    facets = library.facets()
    assert facets["family"] == {"even": 100, "odd": 100}
    assert facets["tool"] == {"read": 133, "search": 67} and facets["source"] == {"traces": 200}


def test_an_index_catches_up_with_a_growing_file_and_starts_anew_with_another(tmp_path):
    folder, index = tmp_path / "run", tmp_path / "i.sqlite"
    with TraceWriter(folder) as writer:
        writer.append([entry(0)])
        with Library(folder, index) as library:
            assert library.count() == 1
            writer.append([entry(1), entry(2)])
            library.refresh()
            assert library.count() == 3 and library.facets()["family"] == {"even": 2, "odd": 1}
    (folder / "traces.blocks").unlink()
    written(folder, [entry(5)])
    with Library(folder, index) as library:
        assert [row["id"] for row in library.rows()] == [entry(5).trace.id]


def test_an_index_starts_anew_where_a_resumed_run_went_back_and_wrote_on(tmp_path):
    folder, index = tmp_path / "run", tmp_path / "i.sqlite"
    first = [Entry(long_trace(seed=seed), task(seed), entry(seed).score, {"step": 0}) for seed in range(4)]
    path = written(folder, first, [entry(5, step=1)])
    with Library(folder, index) as library:
        assert library.count() == 5
        with TraceWriter(folder, resume=True) as writer:
            begins, size = path.read_bytes()[:4096], path.stat().st_size
            writer.rewind(1)
            writer.append([entry(number, step=1) for number in (6, 7)])
        assert path.stat().st_size > size and path.read_bytes()[:4096] == begins
        library.refresh()
        assert [one for _, one in library.entries()] == [*first, entry(6, step=1), entry(7, step=1)]


def test_an_index_starts_anew_where_a_run_went_back_to_the_same_size(tmp_path):
    first = [Entry(long_trace(seed=seed), task(seed), entry(seed).score, {"step": 0}) for seed in range(4)]
    path = written(tmp_path / "run", first, [entry(5, step=1)])
    with Library(tmp_path / "run", tmp_path / "i.sqlite") as library:
        library.refresh()
        before, size = path.read_bytes(), path.stat().st_size
        for number in range(6, 200):
            with TraceWriter(tmp_path / "run", resume=True) as writer:
                writer.rewind(1)
                writer.append([entry(number, step=1)])
            if path.stat().st_size == size:
                break
        assert path.stat().st_size == size and path.read_bytes() != before
        library.refresh()
        assert library.entry(5) == entry(number, step=1) and library.row(5)["id"] == entry(number).trace.id


def test_an_index_goes_on_where_lines_are_appended(tmp_path, monkeypatch):
    from noria.harness.traces.index import Index

    written(tmp_path / "blocks", [entry(0), entry(1)])
    save(tmp_path / "run", load(tmp_path / "blocks"))
    texts = {path: path.read_bytes().splitlines(keepends=True) for path in (tmp_path / "run").iterdir()}
    for path, lines in texts.items():
        path.write_bytes(lines[0])
    with Library(tmp_path / "run", tmp_path / "i.sqlite") as library:
        for path, lines in texts.items():
            path.write_bytes(b"".join(lines))
        read = []
        insert = Index._insert
        monkeypatch.setattr(Index, "_insert", lambda *given: (read.append(given[-1]), insert(*given)))
        library.refresh()
        assert library.count() == 2 and read == [entry(1)]


def test_a_torn_end_is_reported_until_it_is_whole(tmp_path):
    path = written(tmp_path / "run", [entry(0)], [entry(1)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with Library(tmp_path / "run", tmp_path / "i.sqlite") as library:
        assert library.count() == 1 and "torn" in str(library.damages()[0])
        path.write_bytes(whole)
        library.refresh()
        assert library.count() == 2 and library.damages() == []


def test_a_damaged_index_is_made_anew(tmp_path):
    written(tmp_path / "run", [entry(0)])
    (tmp_path / "i.sqlite").write_bytes(b"no database at all" * 100)
    with Library(tmp_path / "run", tmp_path / "i.sqlite") as library:
        assert library.count() == 1


def test_an_index_of_another_version_is_made_anew(tmp_path):
    written(tmp_path / "run", [entry(0)])
    with sqlite3.connect(tmp_path / "i.sqlite") as database:
        database.executescript("CREATE TABLE traces (number INTEGER); PRAGMA user_version = 1;")
    database.close()
    with Library(tmp_path / "run", tmp_path / "i.sqlite") as library:
        assert library.count() == 1


def test_an_index_that_another_process_writes_is_waited_for_and_never_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr("noria.harness.traces.index.WAIT_SECONDS", 0.1)
    index = tmp_path / "i.sqlite"
    written(tmp_path / "run", [entry(0)])
    Library(tmp_path / "run", index).close()
    written(tmp_path / "run", [entry(1)])
    before = index.stat().st_ino
    other = sqlite3.connect(index, isolation_level=None)
    for lock in ("EXCLUSIVE", "IMMEDIATE"):  # the first keeps readers out, the second writers
        other.execute(f"BEGIN {lock}")
        with pytest.raises(TraceFileError, match="another process writes this index"):
            Library(tmp_path / "run", index)
        other.execute("ROLLBACK")
    other.close()
    with Library(tmp_path / "run", index) as library:
        assert library.count() == 2 and index.stat().st_ino == before


def test_an_index_made_beside_the_traces_is_used_for_copies_too(tmp_path, monkeypatch):
    import shutil

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    written(tmp_path / "run", [entry(0), entry(1)])
    build_index(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    before = (tmp_path / "copy" / "index.sqlite").read_bytes()
    with Library(tmp_path / "copy") as library:
        assert library.count() == 2
    assert (tmp_path / "copy" / "index.sqlite").read_bytes() == before and not (tmp_path / "cache").exists()


def test_an_index_beside_the_traces_that_is_of_no_use_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    written(tmp_path / "run", [entry(0)])
    build_index(tmp_path / "run")
    beside = tmp_path / "run" / "index.sqlite"
    written(tmp_path / "run", [entry(1)])
    stale = beside.read_bytes()
    for content in (stale, b"damaged" * 1000, b""):
        beside.write_bytes(content)
        with Library(tmp_path / "run") as library:
            assert library.count() == 2
        assert beside.read_bytes() == content


def test_traces_of_before_as_lines_are_listed_and_bad_lines_named(tmp_path):
    written(tmp_path / "blocks", [entry(0), entry(1), entry(2)])
    lines = tmp_path / "all" / "rl" / "heldout"
    save(lines, load(tmp_path / "blocks"))
    written(tmp_path / "all" / "more", [entry(3)])
    texts = (lines / "traces.jsonl").read_text().splitlines(keepends=True)
    (lines / "traces.jsonl").write_text(texts[0] + "{broken\n" + texts[2])
    with Library(tmp_path / "all", tmp_path / "i.sqlite") as library:
        assert library.facets()["source"] == {"rl/heldout": 2, "more/traces": 1}
        assert [damage.place for damage in library.damages()] == [f"{lines / 'traces.jsonl'}:2"]
        assert [library.entry(number) for number in numbers(library)] == [entry(3), entry(0), entry(2)]
    with (lines / "traces.jsonl").open("a") as stream:
        stream.write(texts[1][:-9])
    with Library(tmp_path / "all", tmp_path / "i.sqlite") as library:
        assert library.count() == 3 and "traces.jsonl:4" in str(library.damages()[-1])


def test_blocks_and_lines_in_one_folder_are_both_listed_and_not_loaded_as_one_set(tmp_path):
    folder = tmp_path / "run"
    written(tmp_path / "blocks", [entry(0)])
    save(folder, load(tmp_path / "blocks"))
    written(folder, [entry(1), entry(2)])
    with Library(folder, tmp_path / "i.sqlite") as library:
        assert library.facets()["source"] == {"traces.blocks": 2, "traces.jsonl": 1}
        assert {one.trace.id for _, one in library.entries()} == {entry(number).trace.id for number in range(3)}
    with pytest.raises(TraceFileError, match=r"in traces\.blocks and in traces\.jsonl"):
        load(folder)


def test_a_line_that_a_file_beside_does_not_have_is_torn_there(tmp_path):
    written(tmp_path / "blocks", [entry(0), entry(1)])
    save(tmp_path / "run", load(tmp_path / "blocks"))
    scores = tmp_path / "run" / "scores.jsonl"
    whole = scores.read_bytes()
    scores.write_bytes(whole.splitlines(keepends=True)[0])
    with Library(tmp_path / "run", tmp_path / "i.sqlite") as library:
        assert library.count() == 1 and [damage.place for damage in library.damages()] == [f"{scores}:2"]
        scores.write_bytes(whole)
        library.refresh()
        assert library.count() == 2 and library.damages() == []


def test_undecodable_bytes_survive_both_formats(tmp_path):
    one = Entry(long_trace(2), task(), entry(0).score)
    written(tmp_path / "blocks", [one])
    save(tmp_path / "lines", load(tmp_path / "blocks"))
    assert load(tmp_path / "lines").traces == (one.trace,)
    with Library(tmp_path / "lines", tmp_path / "i.sqlite") as library:
        assert library.entry(1).trace == one.trace and library.count(Query(text="see")) == 1


def test_lines_are_lines_to_any_reader(tmp_path):
    one = with_sub_agents()  # one of its texts holds U+2028
    bytes_too = Entry(long_trace(2), task(), one.score)
    written(tmp_path / "blocks", [one, bytes_too])
    save(tmp_path / "lines", load(tmp_path / "blocks"))
    for path in (tmp_path / "lines").iterdir():
        assert len(path.read_text(encoding="utf-8").splitlines()) == 2
    assert load(tmp_path / "lines").traces == (one.trace, bytes_too.trace)


def test_a_folder_without_traces_says_so(tmp_path):
    (tmp_path / "traces.jsonl").write_text('{"token_ids": [1]}\n')  # what distillation keeps under that name
    with pytest.raises(TraceFileError, match="holds no traces"):
        Library(tmp_path, tmp_path / "i.sqlite")


def test_a_file_of_another_kind_is_never_written_over(tmp_path):
    path = tmp_path / "traces.blocks"
    path.write_bytes(b"something else, and long enough to be worth keeping")
    with pytest.raises(TraceFileError, match="nothing was written"):
        TraceWriter(tmp_path)
    assert path.read_bytes().startswith(b"something else")
