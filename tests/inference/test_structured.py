"""Structured output, stop strings, penalties and likeliest tokens, from request to completion."""

from __future__ import annotations

import json
import re

import pytest
import torch

from noria.data.tokenizer import train_tokenizer
from noria.inference import Engine, Request, SamplingParams
from noria.inference.structured import BrokenStructure, Structures
from noria.model import ModelConfig, Transformer

TEXT = 'the quick brown fox says {"name": "a lazy dog", "age": 12, "tags": ["x", "y"]} and 3.5 or no because yes'
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([TEXT] * 20, 330)


@pytest.fixture(scope="module")
def structures(tokenizer):
    return Structures(tokenizer.token_bytes, tokenizer.ends)


@pytest.fixture(scope="module")
def engine(tokenizer):
    """More rows than the tokenizer has tokens, as imported models have."""
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size + 6, width=32, layers=2, heads=2, kv_heads=1, ffn_width=48, context=256
    )
    model, generator = Transformer(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return Engine(model.eval(), tokenizer.end, max_rows=8, decode=tokenizer.decode)


def asked(tokenizer, count, structure=None, **params):
    prompt = tokenizer.encode("the quick brown")
    return [
        Request(prompt, SamplingParams(**{"max_tokens": 120, "seed": seed, **params}), structure)
        for seed in range(count)
    ]


def test_replies_are_instances_of_the_schema(engine, tokenizer, structures):
    made = structures.constraint("json_schema", json.dumps(SCHEMA))
    ended = 0
    for completion in engine.generate(asked(tokenizer, 12, made)):
        if completion.finish == "stop":
            found, ended = json.loads(tokenizer.decode(completion.token_ids)), ended + 1
            assert set(found) == {"name", "age"} and len(found["name"]) <= 12 and isinstance(found["age"], int)
            assert found["age"] <= 99
    assert ended >= 6  # the others met their limit, in endless spaces


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_replies_match_the_pattern_beside_free_ones(engine, tokenizer, structures, temperature):
    pattern = r"(yes|no), because [a-z]{1,8}\."
    made = structures.constraint("regex", pattern)
    free = asked(tokenizer, 3, max_tokens=20, temperature=temperature)
    bound = asked(tokenizer, 3, made, temperature=temperature)
    expected = engine.generate(free)
    found = engine.generate([request for pair in zip(bound, free, strict=True) for request in pair])
    for completion in found[::2]:
        assert re.fullmatch(pattern, tokenizer.decode(completion.token_ids))
        assert completion.finish == "stop"
    assert [completion.token_ids for completion in found[1::2]] == [completion.token_ids for completion in expected]


def test_any_json_object_is_an_object(engine, tokenizer, structures):
    for completion in engine.generate(asked(tokenizer, 6, structures.constraint("json_object"))):
        text = tokenizer.decode(completion.token_ids)
        assert text.startswith("{") and (completion.finish == "length" or isinstance(json.loads(text), dict))


@pytest.mark.parametrize(
    ("kind", "text"), [("regex", "(("), ("json_schema", "{"), ("json_schema", '{"type": "objekt"}')]
)
def test_what_cannot_be_compiled_is_refused_with_the_reason(structures, kind, text):
    with pytest.raises(BrokenStructure, match="can't be compiled"):
        structures.constraint(kind, text)


def test_a_reply_ends_with_the_token_that_completes_a_stop_string(engine, tokenizer):
    free = engine.generate(asked(tokenizer, 1, max_tokens=60))[0]
    text = tokenizer.decode(free.token_ids)
    stop = text[20:24]
    stopped = engine.generate(asked(tokenizer, 1, max_tokens=60, stop=("@@@@", stop)))[0]
    count = len(stopped.token_ids)
    assert stopped.finish == "stop" and stopped.token_ids == free.token_ids[:count]
    assert stop in tokenizer.decode(stopped.token_ids) and stop not in tokenizer.decode(stopped.token_ids[:-1])
    with pytest.raises(ValueError, match="decode"):
        Engine(engine.model, tokenizer.end).submit(asked(tokenizer, 1, stop=("x",))[0])


def test_a_bias_forces_and_forbids(engine, tokenizer):
    forced = engine.generate(asked(tokenizer, 1, max_tokens=5, logit_bias={40: 1000.0}))[0]
    assert forced.token_ids == (40,) * 5
    penalised = engine.generate(asked(tokenizer, 1, max_tokens=5, logit_bias={40: 1000.0}, presence_penalty=2.0))[0]
    assert penalised.token_ids == (40,) * 5  # 2 is little against 1000
    once = engine.generate(asked(tokenizer, 1, max_tokens=8, temperature=0.0, repetition_penalty=10.0))[0]
    assert len(set(once.token_ids)) == 8
    with pytest.raises(ValueError, match="logit_bias"):
        engine.submit(asked(tokenizer, 1, logit_bias={10**6: 1.0})[0])


def test_the_likeliest_tokens_are_those_of_the_distribution(engine, tokenizer):
    request = asked(tokenizer, 1, max_tokens=6, top_logprobs=4, temperature=0.5)[0]
    completion = engine.generate([request, *asked(tokenizer, 2)])[0]
    assert len(completion.top_logprobs) == len(completion.token_ids) == 6
    ids = [*request.prompt_ids, *completion.token_ids]
    with torch.no_grad():
        logprobs = (engine.model(torch.tensor([ids[:-1]]))[0] / 0.5).log_softmax(-1)[len(request.prompt_ids) - 1 :]
    for place, likeliest in enumerate(completion.top_logprobs):
        best = logprobs[place].topk(4)
        assert [token for token, _ in likeliest] == best.indices.tolist()
        assert [value for _, value in likeliest] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert all(
        len(place) == 1 for place in engine.generate(asked(tokenizer, 1, top_k=1, top_logprobs=3))[0].top_logprobs
    )
