from __future__ import annotations

import numpy as np
import pytest

from noria.data.language import reject_reasons, thresholds
from noria.data.pii import redact
from noria.data.quality import QualityRules, drop_page_lines, measure, quality_reasons
from noria.data.safety import unsafe_counts, unsafe_reason
from noria.data.words import grams, hash_words

PROSE = (
    "The river turns the wheel, and the wheel lifts the water to the field that is above it. "
    "It is an old machine with few parts. Nobody who sees it for the first time forgets it."
)


def test_words_hash_alike_wherever_they_stand():
    one, many = hash_words(["Hello world"]), hash_words(["x", "", "hello, WORLD!", "水车 12+3"])
    assert one.hashes.tolist() == many.hashes[1:3].tolist()
    assert many.counts.tolist() == [1, 0, 2, 5]
    assert many.operator.tolist() == [False] * 6 + [True, False]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_grams_equal_those_of_a_plain_loop(size):
    texts = ["a b c a b c", "x", "", "one two three four five six " * 3, "a b c"]
    words = hash_words(texts)
    hashes, _, offsets = grams(words, size)
    names: dict[int, tuple[str, ...]] = {}
    for row, text in enumerate(texts):
        parts = text.split()
        expected = [tuple(parts[i : i + size]) for i in range(len(parts) - size + 1)]
        found = hashes[offsets[row] : offsets[row + 1]].tolist()
        assert len(found) == len(expected)
        for value, gram in zip(found, expected, strict=True):
            assert names.setdefault(value, gram) == gram
    assert len(set(names.values())) == len(names)


def test_long_words_that_differ_late_differ_by_length_only():
    long = hash_words(["a" * 200, "a" * 201]).hashes
    assert long[0] != long[1]


def reasons(text: str, **rules) -> str:
    signals, _ = measure([text])
    return quality_reasons(signals, QualityRules(**rules), np.array([True]))[0]


@pytest.mark.parametrize(
    ("text", "rules", "expected"),
    [
        ("two words", {"least_words": 3}, "too few words: 2"),
        (PROSE, {"most_words": 3}, "too many words"),
        ("a b c d", {"mean_word_length": (3, 10)}, "mean word length"),
        ("# " * 5 + "word", {"symbols_to_words": 0.1}, "symbols to words"),
        ("- a\n- b\nc", {"bullet_lines": 0.5}, "bullet lines"),
        ("so ...\nand ...", {"ellipsis_lines": 0.3}, "ellipsis lines"),
        ("1 2 3 4 five", {"letter_words": 0.8}, "letter words"),
        ("cats chase mice daily", {"stop_words": 2}, "stop words"),
        ("same line\nsame line\nother", {"duplicate_lines": 0.3}, "duplicate lines"),
        ("go up go up go up go up go up", {"repetition": 1}, "top 2-gram"),
        (PROSE + " " + PROSE, {"repetition": 1}, "duplicate 5-grams"),
        ("Menu\nHome\nAbout", {"line_end_punctuation": 0.12}, "line end punctuation"),
        ("Menu\nHome\nAbout", {"short_lines": 0.67}, "short lines"),
        ("a\nb\nc", {"newlines_to_words": 0.3}, "newlines to words"),
        ("No sentence here", {"sentences": 1}, "sentences"),
        ("x" * 2000, {"longest_line": 1000}, "longest line"),
    ],
)
def test_each_rule_rejects_what_it_is_for_and_keeps_prose(text, rules, expected):
    assert reasons(text, **rules).startswith(expected)
    if "most_words" not in rules:
        assert reasons(PROSE, **rules) == ""


def test_top_and_duplicate_grams_by_hand():
    signals, _ = measure(["ab cd ab cd ef", "one two three four five x one two three four five"])
    assert signals["top_2_gram"][0] == pytest.approx(8 / 10)
    assert signals["duplicate_5_gram"][1] == pytest.approx(19 / 39)
    assert signals["duplicate_6_gram"][1] == 0


def test_page_lines_fall_away():
    assert drop_page_lines("Good.\nPlease enable JavaScript.\nWe respect your privacy policy") == "Good."


def test_pii_is_replaced_by_type():
    text = "ann@example.com, 8.8.8.8, 192.168.0.1, +44 20 7946 0958, (555) 123-4567, AKIAABCDEFGHIJKLMNOP"
    redacted, found = redact(text)
    assert redacted == "[email], [ip], 192.168.0.1, [phone], [phone], [key]"
    assert found == {"key": 1, "email": 1, "ip": 1, "phone": 2}
    pem = "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----"
    assert redact(f"a {pem} b")[0] == "a [key] b"


@pytest.mark.parametrize(
    "text", ["version 1.2.3.4.5", "2026-01-02", "12 + 30 = 42", "3.14159", "a @decorator", "10,000,000", "300.1.2.3"]
)
def test_what_looks_like_pii_but_is_not(text):
    assert redact(text) == (text, {})


def test_safety_needs_density_not_a_mention():
    mention = "A museum shows how a pipe bomb was defused. " + PROSE * 5
    assert unsafe_reason(mention, unsafe_counts(mention), 3, 2.0) == ""
    dense = "porn " * 5 + PROSE
    assert unsafe_reason(dense, unsafe_counts(dense), 3, 2.0).startswith("sexual: 5")


def test_language_thresholds_follow_fineweb2():
    names, scores = ["en", "fr", "fr", "fr", "xx"], np.array([0.99, 0.8, 0.9, 0.85, 0.1])
    least = thresholds(names, scores)
    assert least["en"] == 0.65
    assert least["fr"] == pytest.approx(0.85 - np.std([0.8, 0.9, 0.85]))
    assert least["xx"] == 0.3
    found = reject_reasons(["en", "en", "fr", "und"], np.array([0.6, 0.7, 0.9, 0]), least, ["en"])
    assert found == ["language unsure", "", "language not wanted", "no words to tell a language by"]
