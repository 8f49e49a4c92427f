"""Whoever uses a model from the command line can say in how many bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from noria.cli import status_of
from noria.deployment import gateway
from noria.inference import Engine
from tests.tiny_model import write_tiny_model

PRECISIONS = ("float32", "bfloat16", "int8", "int4")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """(precision, whether the model was given up) of every engine."""
    found: list[tuple[str, bool]] = []
    build = Engine.__init__

    def note(self: Engine, *arguments: object, **options: object) -> None:
        build(self, *arguments, **options)  # type: ignore[arg-type]
        found.append((self.precision, self.model is None))

    monkeypatch.setattr(Engine, "__init__", note)
    return found


@pytest.mark.parametrize("precision", PRECISIONS)
def test_eval_answers_in_the_precision_asked_for(tmp_path: Path, capsys, built, precision: str):
    folder = write_tiny_model(tmp_path / "model")
    (tmp_path / "mine.jsonl").write_text('{"prompt": "what is 2", "answer": "2", "grader": "maths"}\n')
    told = ["eval", str(folder), str(tmp_path / "mine.jsonl"), "--max-tokens", "3", "--json", "--precision", precision]
    assert status_of(told) == 0
    assert json.loads(capsys.readouterr().out)["precision"] == precision and built == [(precision, True)]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_chat_answers_in_the_precision_asked_for(tmp_path: Path, capsys, monkeypatch, built, precision: str):
    folder = write_tiny_model(tmp_path / "model")
    lines = iter(["hello", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert status_of(["chat", str(folder), "--precision", precision]) == 0
    assert built == [(precision, True)] and len(capsys.readouterr().out.splitlines()) >= 2


def test_serve_passes_the_precision_on(tmp_path: Path, monkeypatch):
    folder = write_tiny_model(tmp_path / "model")
    served = []
    monkeypatch.setattr(gateway, "serve", lambda folder, options, on_ready: served.append(options.precision))
    store = ["--store", str(tmp_path / "store"), "--traffic", str(tmp_path / "traffic.sqlite")]
    for precision in PRECISIONS:
        assert status_of(["serve", str(folder), "--precision", precision, *store]) == 0
    assert served == list(PRECISIONS)
    assert status_of(["serve", str(folder), "--precision", "int2", *store]) == 2
