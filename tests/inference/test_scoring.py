"""Scores of given tokens are those of the model's whole pass, however they are cut up and whoever runs beside them."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

from noria.inference import Engine, Request, SamplingParams
from noria.inference.scoring import LOGITS_AT_ONCE
from noria.model import ModelConfig, Transformer
from noria.model.config import MLA, LocalAttention

SHAPE = {"vocab_size": 50, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_width": 48, "context": 320}
OPTIONS = {
    "fused": {"explicit_head_width": 16, "local": LocalAttention(window=20, global_every=2)},
    "mla": {"mla": MLA(kv_rank=16, nope_width=8, rope_width=4, value_width=8), "kv_heads": 4, "qk_norm": False},
    "capped": {"attention_soft_cap": 10.0, "logit_soft_cap": 20.0},
}


@pytest.fixture(scope="module", params=OPTIONS)
def model(request) -> Transformer:
    model, g = Transformer(ModelConfig(**{**SHAPE, **OPTIONS[request.param]})), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.3)
    return model.eval()


def sequences() -> list[list[int]]:
    """Of 0, 1, 2, ... tokens, one longer than the places whose logits are made at once, one as long as the context."""
    g = torch.Generator().manual_seed(1)
    lengths = (5, 0, 1, 2, 40, LOGITS_AT_ONCE + 20, 33, 32, 320)
    return [torch.randint(0, 50, (length,), generator=g).tolist() for length in lengths]


@torch.no_grad()
def whole_pass(model: Transformer, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)


@pytest.mark.parametrize("step_tokens", [7, 300, 2048])
def test_scores_are_those_of_the_whole_pass(model, step_tokens):
    engine = Engine(model, -1, step_tokens=step_tokens)
    for ids, scores in zip(sequences(), engine.score(sequences(), top_k=4), strict=True):
        targets = max(len(ids) - 1, 0)
        assert scores.token_logprobs.shape == (targets,)
        assert scores.top_ids.shape == scores.top_logprobs.shape == (targets, 4)
        if not targets:
            continue
        logprobs = whole_pass(model, ids)
        torch.testing.assert_close(scores.token_logprobs, logprobs[range(targets), ids[1:]], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(scores.top_logprobs, logprobs.topk(4).values, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(logprobs.gather(1, scores.top_ids), logprobs.topk(4).values, atol=1e-4, rtol=1e-4)


def test_without_top_k_there_are_no_likeliest_and_with_all_they_sum_to_one(model):
    ids = sequences()[4]
    (plain,), (everything,) = (Engine(model, -1).score([ids], top_k) for top_k in (0, 10**6))
    assert plain.top_ids.shape == plain.top_logprobs.shape == (len(ids) - 1, 0)
    assert everything.top_ids.shape == (len(ids) - 1, 50)
    torch.testing.assert_close(everything.top_logprobs.exp().sum(-1), torch.ones(len(ids) - 1))
    assert torch.equal(plain.token_logprobs, everything.token_logprobs)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "int4"])
def test_a_reply_scores_what_it_was_sampled_with(model, precision):
    engine = Engine(model, -1, precision=precision)
    request = Request(sequences()[4], SamplingParams(max_tokens=20, seed=3))
    (reply,) = engine.generate([request])
    (scores,) = engine.score([[*request.prompt_ids, *reply.token_ids]])
    found = scores.token_logprobs[len(request.prompt_ids) - 1 :].tolist()
    assert found == pytest.approx(reply.logprobs, abs=1e-4 if precision == "float32" else 0.15)


def test_scoring_between_steps_and_beside_them_disturbs_no_request(model):
    request = Request(sequences()[4], SamplingParams(max_tokens=60, seed=3))
    (expected,) = Engine(model, -1).generate([request])
    engine = Engine(model, -1, max_rows=2)
    handle = engine.submit(request)
    engine.step()
    alone = engine.score(sequences()[:6])
    beside = []
    scorer = threading.Thread(target=lambda: beside.append(engine.score(sequences()[:6])))
    scorer.start()
    while engine.step():
        pass
    scorer.join()
    assert handle.result().token_ids == expected.token_ids
    assert handle.result().logprobs == pytest.approx(expected.logprobs, abs=1e-5)
    for one, other in zip(alone, beside[0], strict=True):
        assert torch.equal(one.token_logprobs, other.token_logprobs)


def test_weights_that_were_trained_or_loaded_score_anew(model):
    mine, ids = copy.deepcopy(model), sequences()[4]
    engine = Engine(mine, -1)
    (before,) = engine.score([ids])
    with torch.no_grad():
        mine.head.weight.mul_(2.0)
    (after,) = engine.score([ids])
    expected = whole_pass(mine, ids)[range(len(ids) - 1), ids[1:]]
    torch.testing.assert_close(after.token_logprobs, expected, atol=1e-4, rtol=1e-4)
    assert not torch.equal(before.token_logprobs, after.token_logprobs)
    engine.load_weights(model.state_dict(), 1)
    assert torch.equal(engine.score([ids])[0].token_logprobs, before.token_logprobs)


@pytest.mark.parametrize(
    ("sequence", "top_k", "said"),
    [([3] * 321, 0, "321 tokens; the context holds 320"), ([3, 50], 0, r"outside 0\.\.49"), ([3, 4], -1, "found -1")],
)
def test_what_cannot_be_scored_is_refused_with_the_reason(model, sequence, top_k, said):
    with pytest.raises(ValueError, match=said):
        Engine(model, -1).score([[1, 2], sequence], top_k)
