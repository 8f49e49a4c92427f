"""The commands for what others made: noria mcp, noria recorded, noria import-tasks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from noria.cli import status_of
from noria.cli.app import BAD_USE, FAILED, OK

SERVER = f"{sys.executable} -I {Path(__file__).parent / 'harness' / 'misbehaving_mcp_server.py'}"
CALL = {
    "messages": [{"role": "user", "content": "hello"}],
    "replies": [
        {
            "prompt_ids": [1, 2],
            "token_ids": [3],
            "logprobs": [-0.5],
            "finish": "stop",
            "text": "hi",
            "echo": {"role": "assistant", "content": "hi"},
        }
    ],
    "sampling": {"temperature": 1.0},
}


@pytest.mark.parametrize(
    "command", [["recorded"], ["import-tasks"], ["mcp", "serve"], ["mcp", "tools"], ["mcp", "call"]]
)
def test_each_command_explains_itself_with_an_example(command: list[str], capsys: pytest.CaptureFixture[str]):
    assert status_of([*command, "--help"]) == OK
    shown = " ".join(capsys.readouterr().out.split("Example", 1)[1].split())
    assert f"noria {' '.join(command)} " in shown


def test_the_tools_of_a_server_are_listed_and_called(capsys: pytest.CaptureFixture[str]):
    assert status_of(["mcp", "tools", SERVER]) == OK
    assert capsys.readouterr().out.splitlines()[0] == "do what [often] [loud] [kind]"
    assert status_of(["mcp", "tools", SERVER, "--json"]) == OK
    assert json.loads(capsys.readouterr().out)[0]["parameters"]["required"] == ["what"]
    assert status_of(["mcp", "call", SERVER, "do", '{"what": "hello"}']) == OK
    assert capsys.readouterr().out.endswith("says hello\n")
    assert status_of(["mcp", "call", SERVER, "do", '{"what": "fail"}']) == FAILED
    assert capsys.readouterr().err == "error: no such thing\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["call", SERVER, "nosuch"], "there are do"),
        (["call", SERVER, "do", "{}"], "do needs what"),
        (["call", SERVER, "do", "what"], "the argument JSON is no JSON"),
        (["call", SERVER, "do", "[1]"], "the argument JSON must be a JSON object, not [1]"),
        (["tools", " "], "SERVER is empty"),
        (["serve", "--tools", "nosuch"], "there are files"),
    ],
)
def test_wrong_use_of_mcp_says_what_is_right(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]):
    assert status_of(["mcp", *arguments]) == BAD_USE
    assert told in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_recorded_traces_are_listed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "task7@1.jsonl").write_text(json.dumps(CALL) + "\n")
    out = tmp_path / "out" / "traces.jsonl"
    assert status_of(["recorded", str(tmp_path), "--out", str(out), "--json"]) == OK
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["task"], row["outcome"], row["turns"]) == ("task7", "finished", 1)
    assert json.loads(out.read_text())["nodes"][1]["call"]["token_ids"] == [3]
    assert status_of(["recorded", str(tmp_path / "gone")]) == FAILED
    assert "noria serve --record" in capsys.readouterr().err


def test_what_can_not_be_imported_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "task.toml").write_text("[environment]\ngpus = 1\n")
    assert status_of(["import-tasks", "harbor", str(tmp_path)]) == FAILED
    assert capsys.readouterr().out == "0 tasks, 1 refused\n  a: task.toml: a graphics card\n"
    assert status_of(["import-tasks", "inspect", "x.py@y", "--python", "/no/python"]) == FAILED
    assert "can't run /no/python" in capsys.readouterr().err
    assert status_of(["import-tasks", "inspect", "x.py@y", "--arguments", "[]"]) == BAD_USE
