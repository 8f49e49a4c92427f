from __future__ import annotations

import json

import pytest

from benchmarks.report import Row, paired_row, show


def test_ratio_above_one_is_better_for_us_for_speed_and_for_memory():
    assert paired_row("speed", "peer 1", [20.0], [10.0], "tokens/s", lower_is_better=False).ratio == pytest.approx(2)
    assert paired_row("memory", "peer 1", [20.0], [10.0], "MB", lower_is_better=True).ratio == pytest.approx(0.5)


def test_interval_is_over_pairs_and_holds_the_ratio():
    row = paired_row("speed", "peer 1", [2.0, 4.2, 7.9], [1.0, 2.0, 4.0], "x", lower_is_better=False)
    assert row.interval is not None and row.ratio is not None
    assert row.interval[0] < row.ratio < row.interval[1] and row.n == 3
    assert row.interval[1] - row.interval[0] < 0.5, "pairing removes the spread between repetitions"
    with pytest.raises(ValueError, match="can't be paired"):
        paired_row("speed", "peer 1", [1.0], [1.0, 2.0], "x", lower_is_better=False)


def test_with_json_stdout_is_one_object_and_people_read_stderr(capsys):
    show("name", [Row("case", "peer 1", 1.0, 2.0, "s", 2.0, (1.5, 2.5), 3)], as_json=True, quick=True, note="x")
    said = capsys.readouterr()
    body = json.loads(said.out)
    assert "peer 1" in said.err
    assert body["name"] == "name" and body["quick"] and body["note"] == "x" and body["machine"]["cores"] >= 1
    assert body["rows"][0]["interval"] == [1.5, 2.5]
