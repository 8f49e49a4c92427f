"""The load test's own judgement, and a short run of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.load_clients import Tally, read_stream, verdict
from benchmarks.serve_load import Memory, failures_of, measure, slope, write_model

FLAT = Memory([float(second) for second in range(100)], [100.0] * 100)


def test_a_reply_is_right_mixed_cut_or_wrong():
    references = ["one", "two"]
    found = [verdict(text, 0, references) for text in ("one", "two", "three", None)]
    assert found == ["right", "mixed", "wrong", "cut"]


def test_a_stream_without_its_end_has_no_text():
    event = 'data: {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}]}\n\n'
    used = 'data: {"choices": [], "usage": {"completion_tokens": 3}}\n\n'
    assert read_stream(f"{event}{used}data: [DONE]\n\n".encode()) == ("hi", 3)
    assert read_stream((event + used).encode()) == (None, 0)


def test_each_thing_that_must_not_be_fails_the_run():
    good = Counter({"right": 5, "malformed": 2, "malformed, answered": 2})

    def failures(counts: Counter, memory: Memory = FLAT, idle: bool = True, health: int = 200, stopped: int = 0):
        return failures_of(Tally(counts), memory, idle, health, stopped, 6, 1)

    assert failures(good) == []
    for outcome in ("lost", "refused", "wrong", "mixed", "cut", "malformed, wrong answer"):
        assert failures(good + Counter({outcome: 1})) == [f"1 {outcome}"]
    assert failures(good + Counter({"malformed": 1})) == ["1 malformed requests without an answer"]
    assert failures(good + Counter({"right": 1})) == ["the log has 6 replies of at least 7"]
    growing = Memory(FLAT.seconds, [100.0 + 10 * second for second in FLAT.seconds])
    assert "memory grew" in failures(good, growing)[0]
    assert len(failures(good, idle=False, health=503, stopped=1)) == 3


def test_slope_is_that_of_the_line():
    assert slope([0, 1, 2, 3], [5, 7, 9, 11]) == pytest.approx(2)
    assert FLAT.slope() == 0


@pytest.mark.slow
def test_a_short_run_loses_and_mixes_nothing(tmp_path: Path):
    _, failures = measure(write_model(tmp_path / "model"), tmp_path, clients=12, seconds=3, prompts=8)
    assert failures == []
