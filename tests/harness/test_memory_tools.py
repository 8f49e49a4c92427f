"""The memory tools: the same in notes and in a file, exact in notes, and every bad call an error for the model."""

from __future__ import annotations

import json
import sqlite3
import threading

import pytest

from noria.harness.tools.memory import MOST_KEYS, memory_tools
from noria.harness.tools.toolbox import ToolCall, ToolError, bind


class Memory:
    def __init__(self, path=None):
        self.tools = {tool.name: tool for tool in memory_tools(path)}
        self.notes = {"other": 1}

    def __call__(self, tool, argument):
        result = self.tools[tool].run(ToolCall(tool, bind(self.tools[tool], argument), {"f": "x"}, self.notes))
        assert result.files == {"f": "x"} and result.deterministic == self.tools[tool].deterministic
        self.notes = json.loads(json.dumps(result.notes))
        return result.text


@pytest.fixture(params=["notes", "file"])
def memory(request, tmp_path):
    return Memory(tmp_path / "memory.sqlite" if request.param == "file" else None)


def test_what_was_kept_is_recalled_by_key_and_by_words(memory):
    assert memory("remember", "plan first write the tests") == "kept plan"
    assert memory("remember", "db_host the database runs on host seven") == "kept db_host"
    assert memory("recall", "plan") == "plan: first write the tests"
    assert memory("recall", "which hosts?") == "db_host: the database runs on host seven"
    both = {"plan: first write the tests", "db_host: the database runs on host seven"}
    assert set(memory("recall", "testing databases").splitlines()) == both
    assert memory("recall", "nothing like it") == "nothing fits"


def test_a_word_of_the_key_counts_more(memory):
    memory("remember", "a apple pie with cream")
    memory("remember", "apple/red sour and crisp")
    assert memory("recall", "apple cake").splitlines()[0].startswith("apple/red")


def test_keeping_again_replaces_and_forgetting_drops(memory):
    memory("remember", "k one")
    assert memory("remember", "k two") == "replaced k" and memory("recall", "k") == "k: two"
    assert memory("forget", "k") == "forgot k" and memory("recall", "k") == "nothing fits"
    with pytest.raises(ToolError, match="nothing is kept under k"):
        memory("forget", "k")


def test_chinese_is_found_by_what_is_written(memory):
    memory("remember", "城市 首都是北京，人口两千万")
    assert memory("recall", "北京") == "城市: 首都是北京，人口两千万"


@pytest.mark.parametrize("query", ['"', "AND OR NOT", "a* NEAR(b)", "x'; DROP TABLE memory; --", "(", "-", "\0", "%"])
def test_a_query_is_words_and_never_a_language(memory, query):
    memory("remember", "k some text")
    assert memory("recall", {"query": query}) == "nothing fits"
    assert memory("recall", "text") == "k: some text"


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("remember", {"key": "two words", "text": "x"}),
        ("remember", {"key": "", "text": "x"}),
        ("remember", {"key": "k" * 65, "text": "x"}),
        ("remember", {"key": "k", "text": " "}),
        ("remember", {"key": "k", "text": "x" * 5000}),
        ("recall", {"query": " "}),
        ("forget", {"key": "never"}),
    ],
)
def test_bad_calls_are_errors_and_change_nothing(memory, tool, arguments):
    memory("remember", "k kept")
    before = memory.notes
    with pytest.raises(ToolError):
        memory(tool, arguments)
    assert memory.notes == before and memory("recall", "k") == "k: kept"


def test_a_flood_of_keys_is_stopped_and_replacing_goes_on():
    memory = Memory()
    memory.notes = {"memory": {f"k{n}": "x" for n in range(MOST_KEYS)}}
    with pytest.raises(ToolError, match="forget one first"):
        memory("remember", "more x")
    assert memory("remember", "k7 y") == "replaced k7"


def test_surrogates_and_forged_errors_are_harmless(memory):
    memory("remember", {"key": "raw", "text": "bad \udcff byte"})
    assert memory("recall", "raw") == "raw: bad \ufffd\ufffd\ufffd byte"


def test_notes_hold_the_whole_state_in_order_of_keys():
    memory = Memory()
    memory("remember", "b two")
    memory("remember", "a one")
    assert memory.notes == {"other": 1, "memory": {"a": "one", "b": "two"}} and list(memory.notes["memory"]) == [
        "a",
        "b",
    ]
    memory("forget", "a")
    memory("forget", "b")
    assert memory.notes == {"other": 1, "memory": {}}


def test_a_file_outlives_a_trace_and_is_said_to_be_not_deterministic(tmp_path):
    path = tmp_path / "memory.sqlite"
    Memory(path)("remember", "k from the first trace")
    later = Memory(path)
    assert later("recall", "k") == "k: from the first trace" and later.notes == {"other": 1}
    assert not any(tool.deterministic for tool in memory_tools(path)) and all(t.deterministic for t in memory_tools())


def test_traces_that_write_at_once_lose_nothing(tmp_path):
    path = tmp_path / "memory.sqlite"
    memory_tools(path)
    writers = [
        threading.Thread(target=lambda n=n: [Memory(path)("remember", f"k{n}.{i} x") for i in range(8)])
        for n in range(4)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT count(DISTINCT key) FROM memory").fetchone() == (32,)
    database.close()


def test_a_file_that_is_no_memory_is_refused_with_its_name(tmp_path):
    (tmp_path / "x").write_text("not a database, but long enough to be taken for one by its size alone")
    with pytest.raises(ValueError, match="x: no memory can be kept there"):
        memory_tools(tmp_path / "x")
    with pytest.raises(ValueError, match="no memory"):
        memory_tools(tmp_path / "no" / "folder")
