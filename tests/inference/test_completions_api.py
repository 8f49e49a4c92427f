"""The text completions endpoint as the `openai` client sees it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import torch

from noria.data.tokenizer import Tokenizer
from noria.model import load_model
from tests.inference.live_server import LiveServer, live_server
from tests.tiny_model import write_tiny_model

PROMPT = "the quick brown"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def live(folder: Path) -> Iterator[LiveServer]:
    with live_server(folder) as live:
        yield live


@pytest.fixture(scope="module")
def client(live: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def test_text_and_its_token_ids_are_the_same_prompt(client: openai.OpenAI, folder: Path) -> None:
    ids = Tokenizer.load(folder / "tokenizer.json").encode_prompt(PROMPT)
    one, other = (
        client.completions.create(model="noria", prompt=prompt, temperature=0, max_tokens=12)
        for prompt in (PROMPT, ids)
    )
    assert one.choices[0].text == other.choices[0].text != ""
    assert one.usage == other.usage and one.usage.prompt_tokens == len(ids)
    assert one.object == "text_completion" and one.id.startswith("cmpl-")


def test_several_prompts_are_answered_in_order_each_as_alone(client: openai.OpenAI) -> None:
    prompts = [PROMPT, "lazy dog", "hello"]
    together = client.completions.create(model="noria", prompt=prompts, temperature=0, n=2)
    assert [choice.index for choice in together.choices] == list(range(6))
    for place, prompt in enumerate(prompts):
        alone = client.completions.create(model="noria", prompt=prompt, temperature=0).choices[0]
        assert {choice.text for choice in together.choices[2 * place : 2 * place + 2]} == {alone.text}


def test_sixteen_tokens_are_the_default(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="noria", prompt=PROMPT, seed=1)
    assert reply.usage.completion_tokens <= 16


def test_stream_equals_the_whole(client: openai.OpenAI) -> None:
    fields = {"model": "noria", "prompt": [PROMPT, "dog"], "seed": 3, "max_tokens": 20, "echo": True, "logprobs": 0}
    whole = client.completions.create(**fields)
    texts, tokens, finishes, used = ["", ""], [[], []], ["", ""], None
    for chunk in client.completions.create(**fields, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            finishes[choice.index] = choice.finish_reason or finishes[choice.index]
            tokens[choice.index] += choice.logprobs.tokens if choice.logprobs else []
        used = chunk.usage or used
    assert texts == [choice.text for choice in whole.choices]
    assert tokens == [choice.logprobs.tokens for choice in whole.choices]
    assert finishes == [choice.finish_reason for choice in whole.choices] and used == whole.usage


def test_echo_without_new_tokens_scores_the_prompt_as_the_model_does(client: openai.OpenAI, folder: Path) -> None:
    reply = client.completions.create(
        model="noria", prompt=PROMPT, echo=True, max_tokens=0, logprobs=3, temperature=0
    ).choices[0]
    assert (reply.text, reply.finish_reason) == (PROMPT, "length")
    ids = Tokenizer.load(folder / "tokenizer.json").encode_prompt(PROMPT)
    with torch.no_grad():
        logprobs_TV = load_model(folder)(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
    wanted = [logprobs_TV[place, token].item() for place, token in enumerate(ids[1:])]
    assert reply.logprobs.token_logprobs[0] is None
    assert reply.logprobs.token_logprobs[1:] == pytest.approx(wanted, abs=1e-4)
    best = [max(row.values()) for row in reply.logprobs.top_logprobs[1:]]
    assert best == pytest.approx(logprobs_TV.amax(-1).tolist(), abs=1e-4)
    assert reply.logprobs.tokens[0] == "<|bos|>"
    assert reply.logprobs.text_offset[:3] == [0, 0, len(reply.logprobs.tokens[1])]


def test_logprobs_of_new_tokens_continue_those_of_the_echo(client: openai.OpenAI) -> None:
    reply = client.completions.create(
        model="noria", prompt=PROMPT, echo=True, max_tokens=8, logprobs=0, temperature=0
    ).choices[0]
    scored = client.completions.create(model="noria", prompt=reply.text, echo=True, max_tokens=0, logprobs=0).choices[0]
    # Merges may cut the continued text otherwise than it was sampled; where they don't, the numbers agree.
    if scored.logprobs.tokens == reply.logprobs.tokens:
        assert reply.logprobs.token_logprobs[1:] == pytest.approx(scored.logprobs.token_logprobs[1:], abs=1e-4)
    assert len(reply.logprobs.token_logprobs) == len(reply.logprobs.tokens)
    assert all(math.isfinite(one) for one in reply.logprobs.token_logprobs[1:])


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 3]}, "prompt"),
        ({"prompt": [5_000]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": ["x"] * 17}, "prompt"),
        ({"prompt": "z" * 400}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": "yes"}, "echo"),
        ({"messages": []}, "messages"),
        ({"tools": []}, "tools"),
    ],
)
def test_bad_parameter_is_400_and_named(client: openai.OpenAI, change: dict, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as found:
        client.completions.create(model="noria", **{"prompt": PROMPT, "extra_body": change} | {})
    assert found.value.param == param


def test_the_log_gets_counts_and_no_text(client: openai.OpenAI, live: LiveServer) -> None:
    client.completions.create(model="noria", prompt=PROMPT, user="jane")
    served = live.recorded[-1]
    assert (served.user, served.consent, served.messages) == ("jane", "none", ())
