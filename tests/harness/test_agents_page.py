"""docs/agents.md is run as it stands: its program, its tools, its rollouts, its replay."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from noria.cli import app
from noria.harness import Budget, ScriptedPolicy, Toolbox, load_program, replay, rollout
from noria.harness.program import PROGRAMS
from noria.harness.tools import ToolCall
from noria.types import GraderRef, Message, Task

PAGE = (Path(__file__).parents[2] / "docs" / "agents.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
BUDGET = Budget(turns=4, tokens_per_turn=64, context=2000)
TASK = Task(
    "t", (Message("user", "go"),), GraderRef("g", "1"), "", "f", "agent", hidden={"files": {"apple": "one two three"}}
)


def block(holding: str) -> str:
    (found,) = [code for code in BLOCKS if holding in code]
    return found


def test_the_program_of_the_page_runs_and_tells_the_turns_that_are_left(tmp_path, tokenizer, tools):
    (tmp_path / "counting.py").write_text(block("class Harness"))
    program = load_program(tmp_path / "counting.py")
    script = lambda messages, seed: "done" if messages[-1].role == "tool" else "<|call|>list"  # noqa: E731
    policy = ScriptedPolicy(lambda task: script, tokenizer)
    trace = rollout([TASK], [1], policy, None, program, budget=BUDGET, tools=tools)[0]
    assert "apple (3 turns left)" in [node.message.content for node in trace.nodes]
    assert replay(TASK, trace, tokenizer, program, BUDGET) == trace


def test_the_tools_of_the_page_run(tools):
    names: dict = {}
    exec(block("WORDS = Tool("), names)
    box = Toolbox(tools.box, (names["WORDS"], names["SHELL"], names["ASK"]))
    files = TASK.hidden["files"]
    calls = [
        ToolCall("words", box.bind("words", "apple"), files),
        ToolCall("sh", box.bind("sh", "cat apple"), files),
        ToolCall("ask", box.bind("ask", "x"), files, {"kept": {"x": "y"}}),
        ToolCall("ask", box.bind("ask", "z"), files),
    ]
    assert [result.text.strip() for result in box.run(calls)] == [
        "3",
        "one two three",
        "y",
        "error: nothing under that key",
    ]


def test_the_rollout_of_the_page_runs(tokenizer):
    script = lambda messages, seed: "done" if messages[-1].role == "tool" else "<|call|>read apple"  # noqa: E731
    policy = ScriptedPolicy(lambda task: script, tokenizer)
    names = {"tasks": [TASK], "seeds": [1], "engine": policy, "tokenizer": None}
    exec(block("        engine,\n"), names)
    assert names["traces"][0].outcome == "finished"


def test_the_page_leads_from_an_environment_to_traces_that_replay(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(block("load_environment("), {})
    assert capsys.readouterr().out == "1.0\n"
    done = CliRunner().invoke(app, ["traces", "replay", "kept"], standalone_mode=False)
    assert done.exception is None and not done.return_value and "20 of 20 traces replay exactly" in done.output


@pytest.mark.parametrize("name", sorted(path.stem for path in PROGRAMS.glob("*.py") if path.stem != "__init__"))
def test_the_page_names_every_program(name):
    assert f"`{name}`" in PAGE
