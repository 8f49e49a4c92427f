"""noria import and noria export, from a folder of another project to a model that answers, and out again."""

from __future__ import annotations

import json
from pathlib import Path

from noria.cli import status_of
from noria.data.tokenizer import train_tokenizer
from noria.model import ModelConfig, Transformer, load_model, save_model

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
LLAMA = ModelConfig(
    vocab_size=300,
    width=32,
    layers=1,
    heads=2,
    kv_heads=1,
    ffn_width=48,
    context=64,
    activation="swiglu",
    qk_norm=False,
)


def write_model(folder: Path) -> Path:
    folder.mkdir()
    train_tokenizer(["some text"], 300).save(folder.parent / "tokenizer.json")
    save_model(folder, Transformer(LLAMA, seed=3), folder.parent / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "chat_template": TEMPLATE}))
    return folder


def test_a_model_goes_out_and_comes_back_the_same(tmp_path: Path, capsys) -> None:
    ours = write_model(tmp_path / "ours")
    assert status_of(["export", str(ours), str(tmp_path / "theirs")]) == 0
    assert status_of(["import", str(tmp_path / "theirs"), str(tmp_path / "back"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.partition("written\n")[2])["parameters"] == LLAMA.parameters()
    before, after = load_model(ours).state_dict(), load_model(tmp_path / "back").state_dict()
    assert all(before[name].equal(after[name]) for name in before)


def test_an_imported_model_answers_tasks(tmp_path: Path, capsys) -> None:
    ours = write_model(tmp_path / "ours")
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"prompt": "What is 2 + 2?", "answer": "4", "grader": "maths"}\n')
    assert status_of(["eval", str(ours), str(tasks), "--max-tokens", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["items"] == 1


def test_a_folder_of_transformers_answers_as_it_is(tmp_path: Path, capsys) -> None:
    """As the one that noria rft leaves; what is made of it lies elsewhere."""
    ours = write_model(tmp_path / "ours")
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"prompt": "What is 2 + 2?", "answer": "4", "grader": "maths"}\n')
    assert status_of(["export", str(ours), str(tmp_path / "theirs")]) == 0
    there = sorted(path.name for path in (tmp_path / "theirs").iterdir())
    capsys.readouterr()
    assert status_of(["eval", str(tmp_path / "theirs"), str(tasks), "--max-tokens", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["items"] == 1
    assert sorted(path.name for path in (tmp_path / "theirs").iterdir()) == there


def test_a_grader_of_ones_own_grades_as_it_does_in_rft(tmp_path: Path, capsys) -> None:
    ours = write_model(tmp_path / "ours")
    rows = [{"id": str(i), "prompt": f"Name a word, {i}.", "answer": f"word {i}"} for i in range(4)]
    tasks, grader = tmp_path / "tasks.jsonl", tmp_path / "grader.json"
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = {"input": "{{sample.output_text}}", "reference": "{{item.answer}}"}
    grader.write_text(json.dumps({"type": "string_check", "name": "exact", "operation": "eq", **text}))
    asked = ["eval", str(ours), str(tasks), "--grader", str(grader), "--max-tokens", "3"]
    assert status_of([*asked, "--out", str(tmp_path / "items.jsonl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["items"] == 4
    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert [item["correct"] for item in items] == [False] * 4 and items[0]["grader"].startswith("language ")
    # What every answer passes is no grader, and a grader without tasks grades nothing.
    grader.write_text(json.dumps({"type": "string_check", "name": "any", "operation": "like", **text, "reference": ""}))
    assert status_of(asked) == 2
    assert status_of(["eval", str(ours), "--grader", str(grader)]) == 2


def test_a_folder_of_transformers_that_can_not_be_read_says_why(tmp_path: Path, capsys) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    assert status_of(["eval", str(tmp_path)]) != 0
    assert "mamba" in capsys.readouterr().err


def test_what_can_not_be_converted_exits_with_2_and_leaves_nothing(tmp_path: Path, capsys) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    assert status_of(["import", str(tmp_path / "notes.txt"), str(tmp_path / "out")]) == 2
    assert "neither a folder nor a file" in capsys.readouterr().err
    ours = write_model(tmp_path / "ours")
    assert status_of(["export", str(ours), str(tmp_path / "out"), "--precision", "Q8_0"]) == 2
    assert status_of(["export", str(ours), str(tmp_path / "notes.txt")]) == 2  # is there already
    assert status_of(["import", str(ours), str(ours)]) == 2  # not empty
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "ours", "tokenizer.json"]
