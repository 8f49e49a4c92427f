"""The server as the real `openai` client sees it, and the pure translation behind it."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest

from noria.data.tokenizer import Tokenizer
from noria.deployment.gateway import GatewayOptions, background
from noria.deployment.traffic import read_replies
from noria.inference.openai_api import ServerLimits
from noria.inference.openai_chat import parse_chat_request
from noria.inference.openai_schema import ApiError
from noria.inference.reply_text import ReplyText
from tests.tiny_model import write_tiny_model

CONTEXT = 128
ASK = [{"role": "user", "content": "hello you"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), CONTEXT)


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    log = tmp_path_factory.mktemp("log") / "traffic.sqlite"
    with background(folder, GatewayOptions(log, port=0, limits=ServerLimits(live_choices=4, body_bytes=20_000))) as url:
        yield url, log


@pytest.fixture(scope="module")
def client(served: tuple[str, Path]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served[0] + "/v1", api_key="none", max_retries=0) as client:
        yield client


def post(url: str, body: bytes | dict, headers: dict[str, str] | None = None, path: str = "/v1/chat/completions"):
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, raw, {"Content-Type": "application/json", **(headers or {})})
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, json.loads(text)


def test_streamed_text_equals_the_whole_reply(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="noria", messages=ASK, seed=7, max_tokens=24, n=2)
    stream = client.chat.completions.create(
        model="noria", messages=ASK, seed=7, max_tokens=24, n=2, stream=True, stream_options={"include_usage": True}
    )
    texts, finishes, used = ["", ""], ["", ""], None
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finishes[choice.index] = choice.finish_reason or finishes[choice.index]
        used = chunk.usage or used
    assert texts == [choice.message.content for choice in whole.choices]
    assert texts[0] != texts[1]
    assert finishes == [choice.finish_reason for choice in whole.choices]
    assert used == whole.usage


def test_equal_seeds_give_equal_replies_and_others_differ(client: openai.OpenAI) -> None:
    texts = [
        client.chat.completions.create(model="noria", messages=ASK, seed=seed, max_completion_tokens=16)
        .choices[0]
        .message.content
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_temperature_zero_ignores_the_seed(client: openai.OpenAI) -> None:
    texts = {
        client.chat.completions.create(model="noria", messages=ASK, seed=seed, max_tokens=8, temperature=0)
        .choices[0]
        .message.content
        for seed in (1, 2)
    }
    assert len(texts) == 1


def test_logprobs_belong_to_the_sampled_tokens(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="noria", messages=ASK, seed=3, max_tokens=12, logprobs=True)
    tokens = reply.choices[0].logprobs.content
    assert len(tokens) == reply.usage.completion_tokens
    assert all(token.logprob <= 0 for token in tokens)
    raw = b"".join(bytes(token.bytes) for token in tokens).removesuffix(b"<|end|>")
    assert raw.decode("utf-8", "replace") == reply.choices[0].message.content


def test_stop_string_ends_the_reply_before_it(client: openai.OpenAI) -> None:
    whole = (
        client.chat.completions.create(model="noria", messages=ASK, seed=11, max_tokens=40).choices[0].message.content
    )
    stop = whole[10:13]
    cut = client.chat.completions.create(model="noria", messages=ASK, seed=11, max_tokens=40, stop=[stop]).choices[0]
    assert cut.message.content == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


def test_max_tokens_beyond_the_context_is_a_length_finish(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="noria", messages=ASK, seed=5, max_tokens=10_000)
    assert reply.usage.total_tokens <= CONTEXT
    assert reply.choices[0].finish_reason in ("length", "stop")


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["noria"]
    assert client.models.retrieve("noria").id == "noria"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_unknown_model_is_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as found:
        client.chat.completions.create(model="gpt-9", messages=ASK)
    assert (found.value.param, found.value.code) == ("model", "model_not_found")


def test_long_prompt_is_refused_with_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as found:
        client.chat.completions.create(model="noria", messages=[{"role": "user", "content": "z" * 300}])
    assert found.value.code == "context_length_exceeded"
    assert str(CONTEXT) in found.value.message and "304" in found.value.message


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 1.5}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"stop": list("abcde")}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"structured_outputs": {"regex": "(("}}, "structured_outputs"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"min_p": -0.1}, "min_p"),
        ({"logit_bias": {"100000": 1}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"3": 101}}, "3"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs"),
        ({"messages": [{"role": "user", "content": "x", "weight": 1}]}, "messages[0].weight"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": "yes"}, "stream"),
        ({"best_of": 2}, "best_of"),
        ({"user": 5}, "user"),
        ({"metadata": {"consent": "perhaps"}}, "metadata.consent"),
    ],
)
def test_bad_parameter_is_400_and_named(served: tuple[str, Path], change: dict, param: str) -> None:
    status, body = post(served[0], {"model": "noria", "messages": ASK, **change})
    assert (status, body["error"]["param"]) == (400, param)
    assert body["error"]["type"] == "invalid_request_error"


def test_penalties_and_biases_reach_the_engine(served: tuple[str, Path]) -> None:
    """A large bias makes the same token come each time; under a small one and penalties it does not."""

    def reply(**change: object) -> list[str]:
        greedy = {"model": "noria", "messages": ASK, "temperature": 0, "max_tokens": 4, "logprobs": True}
        status, body = post(served[0], {**greedy, "logit_bias": {"70": 100}, **change})
        assert status == 200
        return [entry["token"] for entry in body["choices"][0]["logprobs"]["content"]]

    assert len(set(reply())) == 1 and len(reply()) == 4
    assert len(set(reply(presence_penalty=2.0, frequency_penalty=2.0, logit_bias={"70": 3}))) > 1


def test_malformed_bodies_are_400(served: tuple[str, Path]) -> None:
    deep = b'{"model": "noria", "messages": ' + b"[" * 100 + b"]" * 100 + b"}"
    for raw in (b"{", b"[1]", b"", b"\xff", b"[" * 5000, b"[" * 100_000, deep, b'{"temperature": NaN}', b"9" * 5000):
        status, body = post(served[0], raw)
        assert status in (400, 413) and body["error"]["type"] == "invalid_request_error"
    assert post(served[0], b"{}", {"Content-Type": "text/plain"})[0] == 415
    assert post(served[0], b"{}", {"Content-Encoding": "gzip"})[0] == 415
    assert post(served[0], b" " * 30_000)[0] == 413
    assert post(served[0], {}, path="/v1/nothing")[0] == 404


def test_lone_surrogates_and_special_spellings_are_only_text(served: tuple[str, Path]) -> None:
    body = json.dumps({"model": "noria", "messages": [{"role": "user", "content": "\ud800<|end|>"}], "max_tokens": 2})
    consenting = json.loads(body) | {"metadata": {"consent": "train"}}
    assert post(served[0], consenting)[0] == 200


def test_more_choices_than_ever_fit_are_400(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="can never fit"):
        client.chat.completions.create(model="noria", messages=ASK, n=5)


def test_browser_writes_from_elsewhere_are_refused(served: tuple[str, Path]) -> None:
    body = {"model": "noria", "messages": ASK, "max_tokens": 1}
    assert post(served[0], body, {"Origin": "http://evil.example"})[0] == 403
    assert post(served[0], body, {"Origin": "null"})[0] == 403
    assert post(served[0], body, {"Host": "evil.example"})[0] == 403
    assert post(served[0], body, {"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert post(served[0], body, {"Origin": served[0]})[0] == 200
    assert (
        post(served[0], {"id": "x", "signal": "thumbs_up"}, {"Origin": "http://evil.example"}, "/v1/feedback")[0] == 403
    )


def test_feedback_needs_a_known_reply(client: openai.OpenAI, served: tuple[str, Path]) -> None:
    reply = client.chat.completions.create(model="noria", messages=ASK, max_tokens=2)
    assert post(served[0], {"id": reply.id, "signal": "thumbs_up"}, path="/v1/feedback") == (200, {"ok": True})
    assert post(served[0], {"id": "chatcmpl-0", "signal": "thumbs_up"}, path="/v1/feedback")[0] == 404
    assert post(served[0], {"id": reply.id, "signal": "love"}, path="/v1/feedback")[0] == 400


def test_disconnecting_client_aborts_its_request_and_is_logged(served: tuple[str, Path]) -> None:
    url, log = served
    before = len(read_replies(log))
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
    body = {"model": "noria", "messages": ASK, "stream": True, "n": 4, "user": "leaver", "seed": 2}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.read(10)
    response.close()
    connection.close()
    deadline = time.monotonic() + 20
    while len(read_replies(log)) < before + 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(read_replies(log)) == before + 4
    status, _ = post(url, {"model": "noria", "messages": ASK, "max_tokens": 1, "n": 4})
    assert status == 200  # its room was given back


def test_concurrent_users_get_what_they_would_alone(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str:
        reply = client.chat.completions.create(model="noria", messages=ASK, seed=seed, max_tokens=20)
        return reply.choices[0].message.content or ""

    alone = [ask(seed) for seed in range(4)]
    together: dict[int, str] = {}
    threads = [threading.Thread(target=lambda s=seed: together.update({s: ask(s)})) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[seed] for seed in range(4)] == alone


def test_parse_keeps_roles_and_joins_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    ask = parse_chat_request({"model": "m", "messages": [{"role": "developer", "content": parts}], "top_p": 0})
    assert [(message.role, message.content) for message in ask.messages] == [("system", "ab")]
    assert ask.sampling.top_p > 0
    with pytest.raises(ApiError, match="JSON object"):
        parse_chat_request("x")


def test_reply_text_holds_back_half_characters_and_possible_stops(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    ids = tokenizer.encode("héllo STOP more")
    for stops, wanted in (((), "héllo STOP more"), (("STOP",), "héllo "), (("STOPPED",), "héllo STOP more")):
        reply = ReplyText(tokenizer, stops)
        pieces = [reply.feed(token) for token in ids] + [reply.flush()]
        assert "".join(pieces) == reply.text == wanted
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_reply_keeps_to_its_schema_and_tells_the_likeliest_tokens(served: tuple[str, Path]) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema |= {"additionalProperties": False}
    format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    asked = {"model": "noria", "messages": ASK, "response_format": format_, "max_tokens": 60, "seed": 1}
    status, body = post(served[0], {**asked, "logprobs": True, "top_logprobs": 3})
    assert status == 200, body
    choice = body["choices"][0]
    assert choice["message"]["content"].lstrip().startswith("{")
    if choice["finish_reason"] == "stop":
        assert set(json.loads(choice["message"]["content"])) == {"ok"}
    told = choice["logprobs"]["content"]
    assert told and all(1 <= len(token["top_logprobs"]) <= 3 for token in told)
    status, body = post(
        served[0],
        {"model": "noria", "messages": ASK, "structured_outputs": {"choice": ["yes", "no"]}, "max_tokens": 20},
    )
    assert body["choices"][0]["message"]["content"] in ("yes", "no")
