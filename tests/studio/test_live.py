from __future__ import annotations

import io
import types
from dataclasses import replace

import pytest
from pydantic import BaseModel
from rich.console import Console

from noria.artifacts import Progress, Step
from noria.studio.live import LiveRun, duration, main_numbers, number, progress_text, stage_title
from noria.studio.output import console
from noria.studio.tables import packed


class Nothing(BaseModel):
    pass


def steps() -> list[Step]:
    places = [("registry", "s6_evaluation"), ("raw_data", "s1_raw_data"), ("mix", "loop_a"), ("base", "s4_pretraining")]
    return [Step(name, stage, "x", 1, Nothing(), lambda context: {}) for name, stage in places]


def told(terminal: bool, *progresses: Progress) -> tuple[LiveRun, str]:
    output = io.StringIO()
    live = LiveRun(steps(), Console(file=output, force_terminal=terminal, width=120, color_system=None))
    with live:
        for progress in progresses:
            live.observe(progress)
    return live, output.getvalue()


RUNNING = Progress(
    "base", "s4_pretraining", "k", "running", done=12_000, total=40_000, unit="tokens", rate=850.4, seconds_left=33
)


def test_a_line_a_stage_in_their_order_with_rate_and_time_left():
    _, output = told(True, Progress("raw_data", "s1_raw_data", "k", "made", seconds=2.0), RUNNING)
    lines = [line for line in output.splitlines() if "pretraining" in line or "evaluation" in line or "loop" in line]
    assert [line.split()[1] for line in lines[-3:]] == ["4", "6", "loop"]
    assert "base 12k/40k tokens  850/s  33 s left" in output
    assert "● 1 raw data" in output and "2.0 s" in output


def test_without_a_terminal_a_line_a_change_of_status_and_no_control_codes():
    made = Progress("base", "s4_pretraining", "k", "made", seconds=61)
    _, output = told(False, RUNNING, RUNNING, made)
    assert output.splitlines() == ["4 pretraining: base running", "4 pretraining: base made in 1 min 01 s"]


def test_without_a_terminal_a_step_tells_every_ten_seconds_how_far_it_is_and_less_often_when_it_takes_long():
    def after(seconds: float) -> Progress:
        return replace(RUNNING, done=100 * seconds, seconds=seconds)

    _, output = told(False, after(0), *(after(tenth / 10) for tenth in range(1, 251)))
    assert output.splitlines() == [
        "4 pretraining: base running",
        "4 pretraining: base 1000/40k tokens  850/s  33 s left",
        "4 pretraining: base 2000/40k tokens  850/s  33 s left",
    ]
    _, output = told(False, *(after(float(second)) for second in range(0, 86_400, 5)))
    assert 100 < len(output.splitlines()) < 200


def test_the_lines_of_a_step_do_not_wait_for_the_time_that_the_step_before_it_took():
    before = Progress("raw_data", "s1_raw_data", "k", "running", seconds=0)
    done = replace(before, status="made", seconds=500)
    _, output = told(False, before, done, replace(RUNNING, seconds=0), replace(RUNNING, seconds=10.5))
    assert output.splitlines()[-1].startswith("4 pretraining: base 12k/40k tokens")


def test_the_table_has_a_row_a_step_that_was_touched():
    live, _ = told(False, Progress("raw_data", "s1_raw_data", "k" * 32, "reused"), RUNNING)
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(live.table({}))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "raw_data" in text and "base" in text and "registry" not in text


def summed_up(width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    live = LiveRun(steps(), console)
    metrics = {"perplexity": 12.3, "bits_per_byte": 1.71, "tokens": 1_000_000, "loss": 3.21}
    for name, stage in (("base", "s4_pretraining"), ("registry", "s6_evaluation")):
        live.observe(Progress(name, stage, "k" * 32, "made", seconds=61))
    console.file = io.StringIO()
    artifact = types.SimpleNamespace(metrics=metrics)
    console.print(live.table({"base": artifact, "registry": artifact}))
    return console.file.getvalue()


def test_the_table_of_a_narrow_terminal_breaks_only_between_two_numbers_at_most():
    lines = summed_up(50).splitlines()
    assert all(len(line) <= 50 for line in lines)
    assert [line.split("  ")[-1] for line in map(str.rstrip, lines[1:3])] == ["perplexity 12.3,", "bits_per_byte 1.71"]
    assert "tokens" not in summed_up(80) and "kkkkkkkk" not in summed_up(80) and len(summed_up(80).splitlines()) == 3
    assert "4 pretraining" in summed_up(120) and "kkkkkkkk" in summed_up(120) and "tokens 1M" in summed_up(120)


def test_items_are_joined_up_to_the_width_and_a_long_one_breaks_at_a_space():
    assert packed(["a 1", "b 2", "c 3"], ", ", 9) == ["a 1, b 2,", "c 3"]
    assert packed(["short", "config.rate: 0.1 -> 0.2"], "; ", 12) == ["short;", "config.rate:", "0.1 -> 0.2"]
    assert packed(["agent_heldout_success 0.5"], ", ", 15) == ["agent_heldout_", "success 0.5"]
    assert packed([], ", ", 9) == []


def test_without_a_terminal_the_table_is_wide(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert console().width == 160


def test_a_waiting_step_says_what_it_waits_for():
    assert progress_text(Progress("a", "s1_x", "k", "waiting", "process 7 is making it")) == "process 7 is making it"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (3.14159, "3.14"), (850.4, "850"), (3333.3, "3333"), (12_000, "12k"), (1.6e12, "1.6T"), (2e6, "2M")],
)
def test_numbers_keep_three_digits(value: float, text: str):
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.44, "0.4 s"), (33.3, "33 s"), (125, "2 min 05 s"), (3725, "1 h 02 min")]
)
def test_durations_are_said_as_people_say_them(seconds: float, text: str):
    assert duration(seconds) == text


def test_titles_and_main_numbers():
    assert (stage_title("s4_pretraining"), stage_title("loop_a")) == ("4 pretraining", "loop a")
    assert (
        main_numbers({"loss": 3.21987, "sources": {}, "digest": "a" * 32, "decision": "release", "ok": True})
        == "loss 3.22, decision release"
    )
