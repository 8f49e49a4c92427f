"""Paging: whatever is shared, chunked, taken away or found again, a request gets the same tokens."""

from __future__ import annotations

import pytest
import torch

from noria.inference import Engine, Request, SamplingParams, native, sampler
from noria.inference import network as network_module
from noria.inference.cache import BLOCK, BlockPool, chain
from noria.inference.network import AnyTransformer, PlainDecoder
from noria.model import ModelConfig, Transformer
from noria.model.config import MLA, LocalAttention, MoE

SHAPE = {"vocab_size": 60, "width": 32, "layers": 3, "heads": 4, "kv_heads": 2, "ffn_width": 48, "context": 160}
END = 2
# Every architecture option, the plain ones (fused kernels) first.
OPTIONS = {
    "plain": {"explicit_head_width": 16},
    "llama": {"explicit_head_width": 16, "activation": "swiglu", "qk_norm": False, "tied": False},
    "gemma": {"explicit_head_width": 32, "activation": "geglu", "embedding_scale": 5.0, "logit_soft_cap": 20.0},
    "windows": {"explicit_head_width": 16, "local": LocalAttention(window=20, global_every=2, rope_base=500.0)},
    "nope and biases": {"explicit_head_width": 16, "nope_every": 2, "qkv_bias": True, "attention_scale": 0.3},
    "one group": {"explicit_head_width": 16, "heads": 7, "kv_heads": 1},
    "narrow heads": {},
    "post norm and cap": {"post_norm": True, "attention_soft_cap": 10.0},
    "mla": {"mla": MLA(kv_rank=16, nope_width=8, rope_width=4, value_width=8), "kv_heads": 4, "qk_norm": False},
    "moe": {"moe": MoE(experts=4, chosen=2, expert_width=24, shared=1)},
    "gates": {"attention_gate": "head", "forget_gate": True},
    "residuals": {"attention_residuals": 2},
}
FUSED = ("plain", "llama", "gemma", "windows", "nope and biases", "one group")


def build(name):
    model, generator = Transformer(ModelConfig(**{**SHAPE, **OPTIONS[name]})), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.25 if parameter.ndim > 1 else 0.1
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


@pytest.fixture(scope="module")
def models():
    return {name: build(name) for name in OPTIONS}


def asked(count=6, temperature=0.0, shared=40, tokens=30):
    """Prompts of 41 to 70 tokens whose first 40 are the same."""
    g = torch.Generator().manual_seed(3)
    start = torch.randint(3, 60, (shared,), generator=g).tolist()
    return [
        Request(
            start + torch.randint(3, 60, (1 + 6 * index,), generator=g).tolist(),
            SamplingParams(max_tokens=tokens, temperature=temperature, seed=index),
        )
        for index in range(count)
    ]


def alone(model, requests, **options):
    return [Engine(model, END, max_rows=1, **options).generate([request])[0] for request in requests]


def assert_equal(found, expected, tolerance=2e-5):
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids and one.finish == other.finish
        assert one.logprobs == pytest.approx(other.logprobs, abs=tolerance)


def blocks(engine_config, count):
    """Bytes that hold so many blocks in fp32."""
    return count * BLOCK * engine_config.cache_bytes_per_token()


@pytest.mark.parametrize("name", OPTIONS)
def test_every_architecture_samples_what_its_forward_pass_says(models, name):
    model, requests = models[name], asked(3, tokens=6)
    engine = Engine(model, END)
    assert isinstance(engine._network, PlainDecoder if name in FUSED else AnyTransformer)
    for request, completion in zip(requests, engine.generate(requests), strict=True):
        ids = list(request.prompt_ids)
        for token, logprob in zip(completion.token_ids, completion.logprobs, strict=True):
            with torch.no_grad():
                logprobs = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
            assert logprobs.argmax() == token and logprob == pytest.approx(float(logprobs[token]), abs=1e-4)
            ids.append(token)


@pytest.mark.parametrize(
    ("name", "count", "tokens"),
    [("plain", 3, 20), *(pytest.param(name, 6, 30, marks=pytest.mark.slow) for name in OPTIONS)],
)
def test_alone_together_in_chunks_reused_and_preempted_are_the_same(models, name, count, tokens):
    model, requests = models[name], asked(count, tokens=tokens)
    expected = alone(model, requests)
    config = model.config
    tight = Engine(model, END, cache_bytes=blocks(config, 6))
    assert_equal(tight.generate(requests), expected)
    assert tight.preemptions > 0
    for options in ({}, {"max_rows": 2}, {"step_tokens": 7}, {"step_tokens": 40, "cache_bytes": blocks(config, 9)}):
        engine = Engine(model, END, **options)
        assert_equal(engine.generate(requests), expected)
        assert_equal(engine.generate(requests[::-1]), expected[::-1])  # now with blocks to be found again


@pytest.mark.parametrize(
    ("name", "count", "tokens"),
    [("plain", 3, 20), *(pytest.param(name, 6, 30, marks=pytest.mark.slow) for name in ("plain", "llama"))],
)
def test_fused_kernels_give_the_same_bits_alone_and_together(models, name, count, tokens):
    model, requests = models[name], asked(count, temperature=1.0, tokens=tokens)
    assert Engine(model, END, step_tokens=9).generate(requests) == alone(model, requests)
    assert Engine(model, END, cache_bytes=blocks(model.config, 6)).generate(requests) == alone(model, requests)
    bf16 = {"precision": "bfloat16"}
    assert Engine(model, END, **bf16).generate(requests) == alone(model, requests, **bf16)


@pytest.mark.parametrize(
    "name", [name if name == "plain" else pytest.param(name, marks=pytest.mark.slow) for name in FUSED]
)
def test_pytorch_alone_gives_what_the_kernels_give(models, name, monkeypatch):
    requests = asked(4, temperature=1.0)
    expected = Engine(models[name], END).generate(requests)
    for module in (network_module, sampler):
        monkeypatch.setattr(module, "kernels", lambda: None)
    engine = Engine(models[name], END)
    assert isinstance(engine._network, AnyTransformer)
    assert_equal(engine.generate(requests), expected, 1e-4)


def test_a_prefix_that_was_computed_is_not_computed_again(models):
    engine, requests = Engine(models["plain"], END), asked(tokens=1)
    counted = []

    def count():
        whole = engine._network.hidden
        engine._network.hidden = lambda batch, cache: counted.append(len(batch.token_N)) or whole(batch, cache)

    count()
    engine.generate(requests[-1:])
    engine.generate(requests[-1:])
    assert counted == [71, 71 - 2 * BLOCK]
    engine.generate(requests[:1])  # shares 40 tokens, one full block
    assert counted[-1] == 41 - BLOCK
    engine.refresh()  # other weights, perhaps
    count()
    engine.generate(requests[-1:])
    assert counted[-1] == 71


def test_samples_of_one_prompt_share_its_full_blocks_and_write_to_their_own(models):
    model, prompt = models["plain"], asked(1)[0].prompt_ids
    requests = [Request(prompt, SamplingParams(max_tokens=40, seed=seed)) for seed in range(4)]
    engine = Engine(model, END)
    handles = [engine.submit(request) for request in requests]
    engine.step()
    running = engine._scheduler.running
    assert len(running) == 4 and {sequence.blocks[0] for sequence in running} == {running[0].blocks[0]}
    assert len({sequence.blocks[1] for sequence in running}) == 4
    while engine.step():
        pass
    assert_equal([handle.result() for handle in handles], alone(model, requests))
    assert engine._pool.free == engine._pool.blocks


def test_aborting_the_one_that_computes_a_shared_prompt_leaves_the_others(models):
    model, prompt = models["plain"], asked(1)[0].prompt_ids
    requests = [Request(prompt, SamplingParams(max_tokens=5, seed=seed)) for seed in range(3)]
    engine = Engine(model, END, step_tokens=10)
    handles = [engine.submit(request) for request in requests]
    engine.step()
    handles[0].abort()
    while engine.step():
        pass
    assert handles[0].result().finish == "aborted"
    assert_equal([handle.result() for handle in handles[1:]], alone(model, requests[1:]))
    assert engine._pool.free == engine._pool.blocks


def test_blocks_are_named_by_all_that_comes_before_them():
    tokens = list(range(BLOCK))
    assert chain(b"", tokens) == chain(b"", list(tokens)) != chain(chain(b"", tokens), tokens)
    pool = BlockPool(2)
    first = pool.take()
    pool.name(first, b"a")
    pool.give_back([first])
    assert pool.free == 2 and pool.find(b"a") == first and pool.free == 1
    second = pool.take()
    assert second != first and pool.take() is None
    pool.give_back([first])
    assert pool.take() == first and pool.find(b"a") is None  # given out again, it is forgotten


def test_bfloat16_kernels_round_to_the_nearest():
    found = native.kernels()
    assert found is not None
    x = torch.randn(3, 64) * 100
    out = torch.empty(3, 64, dtype=torch.bfloat16)
    found.add_norm(x, None, torch.ones(64), out, 1e-6)
    expected = torch.nn.functional.rms_norm(x, (64,), eps=1e-6)
    assert (out.float() - expected).abs().max() <= expected.abs().max() * 2**-8
