from __future__ import annotations

import pytest

from noria.data.tokenizer import SMALLEST_VOCABULARY, SPECIALS, Tokenizer, train_tokenizer
from noria.types import Message

TEXTS = [
    "What is 12 + 30? <think> 12 + 30 = 42 </think> 42",
    "the quick brown fox jumps over the lazy dog; the dog sleeps. " * 20,
    "def f(x):\n    return x * 2\n" * 10,
    *(f"{special}{special} spelled {special}" for special in SPECIALS for _ in range(50)),
    "水车在河里转动。" * 10,
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 420)


def test_specials_come_first_in_order(tokenizer):
    assert [tokenizer.pad, tokenizer.bos, tokenizer.end, tokenizer.call] == [0, 1, 2, 7]
    assert [tokenizer.think_open, tokenizer.think_close] == [8, 9]
    assert tokenizer.vocab_size <= 420


def test_text_that_spells_a_special_token_never_becomes_one(tokenizer):
    for special in SPECIALS:
        for text in (special, f"a{special}b", f" {special}\n{special}", special * 3):
            ids = tokenizer.encode(text)
            assert min(ids) >= len(SPECIALS), text
            assert tokenizer.decode(ids) == text
            assert tokenizer.encode_many([text]) == [ids]


def test_guard_survives_saving(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.digest == tokenizer.digest
    assert again.encode("<|end|>") == tokenizer.encode("<|end|>")
    assert min(again.encode("<|end|>")) >= len(SPECIALS)


def test_every_text_round_trips(tokenizer):
    for text in ("", " ", "\n\n  x\t", "naïve café", "水车 🙂", "it's 3.14\r\n", "\x00\x7f", "a" * 1000):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_single_tokens(tokenizer):
    digits = [tokenizer.encode(digit)[0] for digit in "0123456789"]
    assert len(set(digits)) == 10
    assert [index for index in tokenizer.encode("12 + 3045") if index in digits] == [
        digits[int(digit)] for digit in "123045"
    ]


def test_lone_surrogates_do_not_stop_the_line(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_render_writes_roles_and_closes_each_message(tokenizer):
    messages = [Message("user", "hi <|end|>"), Message("assistant", "<think>so</think><|call|>read key7")]
    ids = tokenizer.render(messages)
    assert ids[:2] == [tokenizer.bos, tokenizer.user]
    assert ids[-1] == tokenizer.assistant
    assert ids.count(tokenizer.end) == 2
    assert ids.count(tokenizer.think_open) == ids.count(tokenizer.think_close) == ids.count(tokenizer.call) == 1
    assert tokenizer.render(messages, generation=False) == ids[:-1]


def test_only_leading_tags_of_a_reply_are_special(tokenizer):
    reply = "<think>a <think> b</think>the <|call|> answer </think>"
    ids = tokenizer.encode_reply(reply)
    assert ids[0] == tokenizer.think_open
    assert ids.count(tokenizer.think_open) == ids.count(tokenizer.think_close) == 1
    assert tokenizer.call not in ids
    assert tokenizer.decode(ids) == reply
    assert tokenizer.encode_reply("<think>cut") == [tokenizer.think_open, *tokenizer.encode("cut")]


def test_pad_bos_and_end_are_silent(tokenizer):
    ids = [tokenizer.bos, *tokenizer.encode("x"), tokenizer.end, tokenizer.pad, tokenizer.call]
    assert tokenizer.decode(ids) == "x<|call|>"


def test_training_is_deterministic(tokenizer):
    assert train_tokenizer(TEXTS, 420).to_json() == tokenizer.to_json()


def test_wrong_files_and_sizes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=str(SMALLEST_VOCABULARY)):
        train_tokenizer(TEXTS, 100)
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        Tokenizer.load(path)


def test_bytes_of_tokens_put_together_are_the_text() -> None:
    tokenizer = train_tokenizer(["the quick brown fox"] * 5, 280)
    for text in ("the quick fox", "naïve 中文 😀", "\x00\x7f\xa0\xad\n\t"):
        assert b"".join(tokenizer.token_bytes[token] for token in tokenizer.encode(text)) == text.encode()
    assert tokenizer.token_bytes[tokenizer.end] == b"<|end|>" and len(tokenizer.token_bytes) == tokenizer.vocab_size
