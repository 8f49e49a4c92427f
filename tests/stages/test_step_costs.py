"""Speed and memory of training steps: measured where they can be, and told to the run database alone."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import pytest

from noria.artifacts import StepContext
from noria.stages import step_costs
from noria.stages.step_costs import StepCosts, peak_bytes, reset_peak
from noria.stages.training_progress import training_progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times at which steps end, first to last."""
    times: list[float] = []
    monkeypatch.setattr(step_costs.time, "monotonic", lambda: times.pop(0))
    return times


def test_speed_is_tokens_over_the_seconds_since_the_step_before(clock: list[float]) -> None:
    clock += [5.0, 7.0, 9.0]
    costs = StepCosts()
    first, second, left_out = (costs.of_step({"tokens": tokens}) for tokens in (100.0, 300.0, 0.0))
    assert "tokens_per_second" not in first and second["tokens_per_second"] == 150.0
    assert "tokens_per_second" not in left_out


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_the_peak_counts_from_the_start_of_training() -> None:
    held = mmap.mmap(-1, 64 << 20)  # unlike malloc's, it goes back for certain
    for page in range(0, len(held), mmap.PAGESIZE):
        held[page] = 1
    before = peak_bytes()
    held.close()
    assert reset_peak() and before is not None
    assert (peak_bytes() or 0) < before - (32 << 20)


def test_a_parent_of_several_ranks_does_not_pass_its_own_memory_off_as_theirs() -> None:
    assert "peak_memory_bytes" not in StepCosts(processes=2).of_step({"tokens": 1.0})


def test_without_a_peak_that_can_be_set_back_none_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(step_costs, "CLEAR", tmp_path / "none" / "clear_refs")
    assert "peak_memory_bytes" not in StepCosts().of_step({"tokens": 1.0})


def test_what_a_step_cost_is_no_part_of_its_history(tmp_path: Path, clock: list[float]) -> None:
    clock += [1.0, 2.0]
    logged: list[dict[str, Any]] = []
    folders = {name: tmp_path / name for name in ("content", "observed", "progress")}
    context = StepContext(None, {}, **folders, log=lambda step, **told: logged.append(told))
    progress = training_progress(context)
    assert progress.on_step is not None
    history = [{"loss_ce": 2.0, "tokens": 50.0}, {"loss_ce": 1.0, "tokens": 50.0}]
    for step, row in enumerate(history):
        progress.on_step(step, 2, row)
    assert logged[1]["tokens_per_second"] == 50.0 and logged[1]["loss_ce"] == 1.0
    assert all(set(row) == {"loss_ce", "tokens"} for row in history)
