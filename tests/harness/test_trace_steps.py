"""Rollouts of a training run kept by step: each once, whatever was killed or gone back from."""

from __future__ import annotations

from noria.harness.traces import Entry, Library, StepTraces
from tests.harness.made_up_traces import entry


def step_of(kept: StepTraces, step: int, first: int) -> list[Entry]:
    entries = [entry(first + place) for place in range(3)]
    kept.keep(step, [one.task for one in entries], [one.trace for one in entries], [one.score for one in entries])
    return entries


def test_a_run_killed_and_resumed_from_an_earlier_step_keeps_each_rollout_once(tmp_path):
    kept = StepTraces(tmp_path / "progress")
    for step in range(4):
        step_of(kept, step, 10 * step)
    kept._writer.close()  # as a killed process leaves it
    resumed = StepTraces(tmp_path / "progress")
    for step in (2, 3):
        step_of(resumed, step, 100 + 10 * step)
    step_of(resumed, 3, 500)  # the guard went back by one
    resumed.finish(tmp_path / "observed" / "traces")
    with Library(tmp_path / "observed" / "traces") as library:
        seeds = [one.trace.seed for _, one in library.entries()]
        steps = [row["step"] for row in library.rows()]
    assert seeds == [0, 1, 2, 10, 11, 12, 120, 121, 122, 500, 501, 502]
    assert steps == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
