from __future__ import annotations

import json
from pathlib import Path

import pytest

from noria.cli import status_of
from noria.data.tokenizer import train_tokenizer
from noria.model import ModelConfig, Transformer, save_model
from noria.types import Score, Task


def failed(task: Task) -> Score:
    return Score("failed", task.grader, None, "timeout", evidence="took longer than 5 s")


def test_a_model_folder_answers_a_users_tasks(tmp_path: Path, capsys):
    tokenizer = train_tokenizer(["what is two and two"], 300)
    tokenizer.save(tmp_path / "tokenizer.json")
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, width=16, layers=1, heads=2, kv_heads=1, ffn_width=32, context=64
    )
    save_model(tmp_path / "model", Transformer(config), tmp_path / "tokenizer.json")
    tasks = tmp_path / "mine.jsonl"
    lines = [{"prompt": f"what is {n}", "answer": str(n), "grader": "maths"} for n in range(3)]
    tasks.write_text("".join(json.dumps(line) + "\n" for line in lines))

    arguments = [
        "eval",
        str(tmp_path / "model"),
        str(tasks),
        "--max-tokens",
        "4",
        "--out",
        str(tmp_path / "new" / "items.jsonl"),
    ]
    assert status_of([*arguments, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["items"] == 3 and summary["families"]["mine"]["n"] == 3
    items = [json.loads(line) for line in (tmp_path / "new" / "items.jsonl").read_text().splitlines()]
    assert [item["family"] for item in items] == ["mine"] * 3

    assert status_of(arguments) == 0
    assert "95% interval" in capsys.readouterr().out

    assert status_of([*arguments[:-1], str(tmp_path)]) == 2
    assert "is a folder; name a file in it" in capsys.readouterr().err

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("noria.evals.benchmarks.grade", lambda tasks, traces: [failed(task) for task in tasks])
        assert status_of([*arguments, "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["not_graded"] == {"mine": {"timeout": 3}} and "3 × timeout" in told.err

    tasks.write_text('{"prompt": 1}\n')
    assert status_of(arguments) == 2
    assert capsys.readouterr().err.startswith(f"noria: {tasks}:1: ")
    tasks.unlink()
    assert status_of(arguments) == 2 and f"{tasks} can't be read" in capsys.readouterr().err
