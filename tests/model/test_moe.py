"""Experts: the two ways to compute them agree, nothing is dropped, loads are counted once and brought into balance."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from noria.model import ModelConfig, Transformer
from noria.model import moe as moe_module
from noria.model.config import MoE
from noria.model.moe import MixtureOfExperts, balance_experts, by_expert, route
from tests.model.options import PLAIN, option, random_tokens, randomised

LOADS = torch.tensor([5, 0, 17, 2])


def products(x, weight, load):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = by_expert(x, weight, load)
    y.float().square().sum().backward()
    return y, x.grad, weight.grad


def test_the_grouped_product_in_bf16_is_the_product_of_each_expert_backward_too(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(24, 16, generator=generator), torch.randn(4, 8, 16, generator=generator)
    exact = products(x.bfloat16().float(), weight.bfloat16().float(), LOADS)
    calls, grouped = [], torch._grouped_mm
    monkeypatch.setattr(torch, "_grouped_mm", lambda *a, **k: calls.append(1) or grouped(*a, **k))
    for found, expected in zip(products(x.bfloat16(), weight.bfloat16(), LOADS), exact, strict=True):
        assert found.dtype == torch.bfloat16
        assert (found.float() - expected).norm() < 0.01 * expected.norm()
    with torch.autocast("cpu", torch.bfloat16):
        assert by_expert(x, weight, LOADS).dtype == torch.bfloat16
    assert len(calls) == 2
    products(x, weight, LOADS)  # fp32
    products(x[:, :12].bfloat16(), weight[..., :12].bfloat16(), LOADS)  # 12 is no multiple of 8
    assert len(calls) == 2


def test_an_expert_that_nobody_visits_has_a_gradient_of_zero():
    weight_gradient = products(torch.randn(24, 16), torch.randn(4, 8, 16), LOADS)[2]
    assert not weight_gradient[1].any() and weight_gradient[0].any()


def test_no_token_is_dropped_when_all_want_the_same_experts():
    config = option("experts")
    layer = MixtureOfExperts(config)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    layer.bias += torch.tensor([0.0, 9.0, 0.0, 0.0, 9.0, 0.0])
    x = torch.randn(2, 40, config.width)
    layer(x).sum().backward()
    assert layer.load.tolist() == [0, 80, 0, 0, 80, 0]
    scores = (x @ layer.router.weight.T).sigmoid()[..., [1, 4]]
    each = torch.stack([F.relu(x @ layer.up[e].T).square() @ layer.down[e].T for e in (1, 4)], -1)
    torch.testing.assert_close(layer(x), (each * (scores / scores.sum(-1, keepdim=True))[..., None, :]).sum(-1))


def test_the_bias_chooses_and_does_not_weigh():
    logits, config = torch.tensor([[2.0, 1.0, 0.0]]), MoE(experts=3, chosen=2, expert_width=1)
    plain, biased = route(logits, torch.zeros(3), config), route(logits, torch.tensor([0.0, -1.0, 0.0]), config)
    assert plain[0].tolist() == [[0, 1]] and biased[0].tolist() == [[0, 2]]
    scores = logits[0].sigmoid()
    torch.testing.assert_close(biased[1][0], scores[[0, 2]] / scores[[0, 2]].sum())


def loads(model):
    return [layer.load.clone() for layer in model.modules() if isinstance(layer, MixtureOfExperts)]


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_activations_count_a_visit_once(reentrant):
    config = option("experts")
    model, tokens = randomised(config).train(), random_tokens(config, 3, 8)
    model(tokens).sum().backward()
    expected = loads(model)
    assert all(load.sum() == 3 * 8 * config.moe.chosen for load in expected)
    balance_experts(model, rate=0.0)
    for block in model.blocks:  # the reentrant kind does not look for tensors inside tuples such as the stream
        part = block.moe if reentrant else block
        part.forward = lambda *given, own=part.forward: checkpoint(own, *given, use_reentrant=reentrant)
    for _ in range(2):  # two micro-batches
        model(tokens).sum().backward()
    assert all(torch.equal(found, 2 * load) for found, load in zip(loads(model), expected, strict=True))


def test_what_is_not_trained_on_is_not_counted():
    config = option("experts")
    model, tokens = randomised(config).train(), random_tokens(config, 3, 8)
    with torch.no_grad():
        model(tokens)
    model.eval()(tokens).sum().backward()
    assert not any(load.any() for load in loads(model))
    assert balance_experts(model) == []


def test_biases_move_against_the_load_by_the_rate_and_keep_their_mean():
    model = Transformer(option("experts", layers=1))
    layer = model.blocks[0].moe
    layer.load.copy_(torch.tensor([6.0, 0.0, 2.0, 2.0, 1.0, 1.0]))
    assert balance_experts(model, rate=0.01) == [pytest.approx(2.0)]
    raw = torch.tensor([-0.01, 0.01, 0.0, 0.0, 0.01, 0.01])
    torch.testing.assert_close(layer.bias, raw - raw.mean())
    assert not layer.load.any()


def test_loads_of_several_ranks_are_added_up_before_the_biases_move():
    model = Transformer(option("experts", layers=1))
    model.blocks[0].moe.load.copy_(torch.tensor([1.0, 0, 0, 0, 0, 0]))
    balance_experts(model, 0.01, reduce=lambda load: load.add_(torch.tensor([0.0, 5, 5, 5, 5, 5])))
    assert model.blocks[0].moe.bias.argmax() == 0


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.0, 0.01])
def test_a_small_run_keeps_every_expert_within_a_fifth_of_even_and_does_not_without_the_biases(rate):
    """Zipf-distributed tokens, half of them a function of the one before; loads of the last 30 of 120 steps."""
    shape = {"vocab_size": 64, "moe": {"experts": 8, "chosen": 2, "expert_width": 32, "shared": 1}}
    model, generator = Transformer(ModelConfig(**{**PLAIN, **shape})).train(), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    late = [torch.zeros(8), torch.zeros(8)]
    for step in range(120):
        tokens = torch.multinomial(1 / torch.arange(1, 65.0), 8 * 33, True, generator=generator).view(8, 33)
        tokens[:, 1::2] = (tokens[:, 0:-1:2] * 7 + 3) % 64
        optimiser.zero_grad()
        F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimiser.step()
        if step >= 90:
            late = [total + load for total, load in zip(late, loads(model), strict=True)]
        balance_experts(model, rate)
    shares = torch.stack([total / total.mean() for total in late])
    within = ((shares - 1).abs() < 0.2).all()
    assert within if rate else not within


def test_the_router_computes_in_fp32_under_autocast(monkeypatch):
    seen = []
    monkeypatch.setattr(moe_module, "route", lambda logits, *rest: seen.append(logits.dtype) or route(logits, *rest))
    config = option("experts")
    with torch.autocast("cpu", torch.bfloat16):
        randomised(config)(random_tokens(config, 1, 4))
    assert set(seen) == {torch.float32}
