"""A conversation in the terminal: pieces as they come, whole replies in the history, and a way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from noria.data.chat_tokenizer import load_chat_tokenizer
from noria.deployment import chat_terminal as terminal
from noria.deployment.chat_terminal import ChatOptions, chat_terminal
from noria.inference import Engine, Request, SamplingParams
from noria.model import load_model
from noria.types import Message
from tests.tiny_model import write_tiny_model

GREEDY = ChatOptions(temperature=0.0, max_tokens=12)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model")


def talk(folder: Path, lines: list[str], options: ChatOptions = GREEDY) -> list[str]:
    """The pieces that were written, without the greeting; the lines end with end-of-file."""
    said, pieces = iter(lines), []

    def read(prompt: str) -> str:
        try:
            return next(said)
        except StopIteration:
            raise EOFError from None

    chat_terminal(folder, options, read, pieces.append)
    return pieces[1:]


def test_a_reply_is_what_the_engine_gives_and_comes_in_pieces(folder):
    pieces = talk(folder, ["hello"])
    tokenizer = load_chat_tokenizer(folder)
    params = SamplingParams(max_tokens=12, temperature=0.0, stop_ids=tokenizer.ends)
    asked = Request(tokenizer.render([Message("user", "hello")]), params)
    completion = Engine(load_model(folder), tokenizer.end).generate([asked])[0]
    expected = terminal.printable(tokenizer.decode(completion.token_ids))
    shown = "".join(pieces).removesuffix("[cut off at 12 tokens]\n").rstrip("\n")
    # An untrained model's bytes are no characters: how many stand for a broken one depends on where the pieces end.
    assert shown.replace("\ufffd", "") == expected.rstrip("\n").replace("\ufffd", "") != ""
    assert completion.finish != "length" or pieces[-1] == "\n[cut off at 12 tokens]\n"
    assert len(pieces) > 2


def test_new_starts_over_and_what_is_no_command_is_answered_with_help(folder):
    once, again = talk(folder, ["hello"]), talk(folder, ["hello", "/new", "hello"])
    assert "".join(again) == 2 * "".join(once)
    assert "".join(talk(folder, ["hello", "hello"])) != 2 * "".join(once)  # the history counts
    assert talk(folder, ["/what", "/quit", "hello"]) == [f"{terminal.HELP}\n"]


def test_a_system_message_stands_before_everything_also_after_new(folder):
    told = ChatOptions(temperature=0.0, max_tokens=12, system="count to ten")
    once = talk(folder, ["hello"], told)
    assert "".join(once) != "".join(talk(folder, ["hello"]))
    assert "".join(talk(folder, ["hello", "/new", "hello"], told)) == 2 * "".join(once)


def test_ctrl_c_ends_the_reply_and_not_the_conversation(folder, monkeypatch):
    step, count = Engine.step, 0

    def interrupted(engine: Engine) -> bool:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return step(engine)

    monkeypatch.setattr(Engine, "step", interrupted)
    pieces = talk(folder, ["hello", "/what"])
    assert pieces[-1] == f"{terminal.HELP}\n" and "cut off" not in "".join(pieces)
