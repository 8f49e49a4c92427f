"""The chat page in a real browser, against the real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from noria.deployment.api_keys import parse_keys
from noria.deployment.gateway import GatewayOptions, background
from noria.deployment.traffic import read_replies
from noria.studio.chat import FOLDER
from tests.browser import open_page
from tests.tiny_model import write_tiny_model

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = write_tiny_model(tmp_path / "model")
    with background(folder, GatewayOptions(tmp_path / "t.sqlite", port=0, page=FOLDER)) as url:
        yield url, tmp_path / "t.sqlite"


def event(**delta: str) -> str:
    chunk = {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    return f"data: {json.dumps(chunk)}\n\n"


@pytest.mark.slow
def test_a_message_is_answered_logged_rated_and_made_again(served: tuple[str, Path]) -> None:
    url, log = served
    with open_page() as (page, errors):
        page.goto(url)
        page.wait_for_selector("#model:text-is('noria')")
        page.select_option("#consent", "train")
        page.fill("#input", f"hello {HOSTILE[:24]}")
        page.press("#input", "Enter")
        page.wait_for_selector(".assistant .tools button")
        assert page.inner_text(".user").startswith("hello <img")
        page.click("[aria-label='Good reply']")
        page.wait_for_selector("[aria-label='Good reply'][aria-pressed=true]")
        page.click("[aria-label='Make this reply again']")
        page.wait_for_selector(".assistant .tools [aria-label='Good reply'][aria-pressed=false]")
        assert page.locator(".assistant").count() == 1
        assert page.locator("main img, main script").count() == 0
        assert errors == []
    rows = read_replies(log)
    assert len(rows) == 2 and rows[0].signals == ("regenerated", "thumbs_up")
    assert rows[0].messages and rows[0].messages[0].content.startswith("hello <img")


@pytest.mark.slow
def test_a_server_with_keys_is_used_with_one(tmp_path: Path) -> None:
    key = "jane-key-0123456789"
    keys = parse_keys([f"jane {key}"], "keys")
    options = GatewayOptions(tmp_path / "t.sqlite", port=0, page=FOLDER, keys=keys)
    with background(write_tiny_model(tmp_path / "model"), options) as url, open_page() as (page, errors):
        answers = ["wrong-key-0123456789", key]
        page.on("dialog", lambda dialog: dialog.accept(answers.pop(0)))
        page.goto(url)
        page.wait_for_selector("#model:text-is('noria')")
        page.fill("#input", "hello")
        page.press("#input", "Enter")
        page.wait_for_selector(".assistant .tools button")
        assert answers == [] and all("401" in error for error in errors)
    assert len(read_replies(tmp_path / "t.sqlite")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_hostile_model_text_is_shown_as_text(served: tuple[str, Path], width: int) -> None:
    parts = ["<think>", HOSTILE, "</think>", HOSTILE, "```html\n", HOSTILE, "```", "x" * 400]
    body = "".join(event(content=part) for part in parts) + "data: [DONE]\n\n"
    with open_page(width) as (page, errors):
        page.route(
            "**/v1/chat/completions",
            lambda route: route.fulfill(status=200, content_type="text/event-stream", body=body),
        )
        page.goto(served[0])
        page.wait_for_selector("#model:text-is('noria')")
        page.fill("#input", HOSTILE)
        page.click("#send")
        page.wait_for_selector(".assistant .tools button")
        page.click("summary")
        assert page.inner_text(".assistant details .text") == HOSTILE
        assert HOSTILE in page.inner_text(".assistant .body")
        assert page.inner_text(".assistant pre").strip() == HOSTILE
        assert page.locator("main img, main script").count() == 0
        assert page.title() == "noria chat"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert errors == []


@pytest.mark.slow
def test_markers_after_the_thinking_are_no_part_of_the_answer(served: tuple[str, Path]) -> None:
    replies = ["<think>6 x 7</think>42</think>42<think> ", "<think>no end of it</think> </think>"]
    with open_page() as (page, errors):
        page.route(
            "**/v1/chat/completions",
            lambda route: route.fulfill(
                status=200, content_type="text/event-stream", body=event(content=replies.pop(0)) + "data: [DONE]\n\n"
            ),
        )
        page.goto(served[0])
        page.wait_for_selector("#model:text-is('noria')")
        for place, shown in enumerate(("42\n42", "(no answer)")):
            page.fill("#input", "6 x 7?")
            page.click("#send")
            page.locator(".assistant").nth(place).locator(".regenerate").wait_for()
            assert page.locator(".assistant").nth(place).locator(".body > .text").all_inner_texts()[0].strip() == shown
        assert "think>" not in page.inner_text("#log")
        assert errors == []


@pytest.mark.slow
def test_an_empty_page_says_what_can_be_asked_and_asks_it_at_a_click(served: tuple[str, Path]) -> None:
    with open_page() as (page, errors):
        page.goto(served[0])
        page.wait_for_selector("#model:text-is('noria')")
        assert "everyday requests" in page.inner_text("#start")
        example = page.inner_text("#examples button >> nth=0")
        page.click("#examples button >> nth=0")
        page.wait_for_selector(".assistant .regenerate")
        assert page.inner_text(".user") == example and not page.is_visible("#start")
        page.click("#new")
        assert page.is_visible("#start") and page.locator(".turn").count() == 0
        assert errors == []


@pytest.mark.slow
def test_on_a_phone_buttons_fit_a_finger_and_the_header_two_rows(served: tuple[str, Path]) -> None:
    with open_page(390, 844) as (page, _):
        page.goto(served[0])
        page.wait_for_selector("#model:text-is('noria')")
        assert page.evaluate("document.querySelector('header').offsetHeight") < 130
        sizes = "all => all.filter(one => one.offsetParent).map(one => [one.offsetWidth, one.offsetHeight])"
        buttons = page.locator("button, select").evaluate_all(sizes)
        page.click("#examples button >> nth=0")
        page.wait_for_selector(".assistant .regenerate")
        buttons += page.locator("button, select").evaluate_all(sizes)
        assert len(buttons) > 10 and min(min(size) for size in buttons) >= 40
        assert page.locator(".tools button svg").count() == 3  # drawn: there may be no font for emoji
        assert all(ord(letter) < 0x2190 for letter in page.inner_text(".tools"))
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
def test_stop_ends_the_stream_and_a_refusal_gives_the_message_back(served: tuple[str, Path]) -> None:
    with open_page() as (page, errors):
        page.goto(served[0])
        page.wait_for_selector("#model:text-is('noria')")
        page.fill("#input", "z" * 300)
        page.click("#send")
        page.wait_for_selector("#problem:not([hidden])")
        assert "maximum context length" in page.inner_text("#problem")
        assert page.input_value("#input") == "z" * 300
        assert page.locator(".turn").count() == 0
        assert all("400" in error for error in errors)  # the browser itself reports the refused request
        page.route("**/v1/chat/completions", lambda route: None)  # never answers
        page.fill("#input", "hello")
        page.click("#send")
        page.click("#stop")
        page.wait_for_selector("#send:visible")
