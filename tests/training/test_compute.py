"""bf16, compilation and recomputed activations change speed and rounding, not what is learned."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from noria.model import Transformer
from noria.model.blocked_attention import blocked_attention
from noria.training import Annotated, LoopConfig, Objective, TokenBatch, train
from noria.training.compute import check_compiler, computing
from noria.training.step import measure_gradient
from tests.training.test_objectives import TINY, full_batch, tiny


def gradient(model, **how):
    settings = {"precision": "float32", "compiled": False, "recompute_activations": False, **how}
    # Cross-entropy alone: where exp(log p - log mu) is large, policy terms multiply any rounding of log p.
    batch = dataclasses.replace(full_batch(), w_rl=None, w_kl=None, w_kd=None)
    with computing(model, **settings):
        measured = measure_gradient(model, batch, 3, Objective())
    return measured, torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_recomputed_activations_give_the_same_gradient():
    plain, recomputed = gradient(tiny()), gradient(tiny(), recompute_activations=True)
    assert recomputed[0].losses == plain[0].losses
    torch.testing.assert_close(recomputed[1], plain[1], atol=1e-7, rtol=1e-6)


def test_recomputing_keeps_less_for_the_backward_pass():
    def kept(**how):
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        model = tiny()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            gradient(model, **how)
        return total

    assert kept(recompute_activations=True) < 0.7 * kept()


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_bf16_gradient_points_where_the_fp32_one_does_and_stays_fp32(compiled):
    model = tiny()
    _, plain = gradient(tiny())
    _, low = gradient(model, precision="bfloat16", compiled=compiled)
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())
    assert torch.nn.functional.cosine_similarity(plain, low, dim=0) > 0.999
    assert low.norm().item() == pytest.approx(plain.norm().item(), rel=0.02)


def test_within_it_evaluations_compute_as_ever_and_after_it_everything_does():
    model = tiny()
    tokens = full_batch().tokens_BT
    expected = model.hidden(tokens)
    with computing(model, "bfloat16", compiled=False, recompute_activations=False):
        assert model.hidden(tokens).dtype == torch.bfloat16
        with torch.no_grad():
            assert torch.equal(model.hidden(tokens), expected)
    assert torch.equal(model.hidden(tokens), expected)
    assert not any("forward" in vars(block) for block in model.blocks) and "hidden" not in vars(model)


def test_within_it_an_evaluation_keeps_the_precision_of_whoever_asks():
    """As an engine of a model with experts does, which computes the model's own passes in bf16."""
    model, tokens = tiny(), full_batch().tokens_BT
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model.hidden(tokens)
        with computing(model, "bfloat16", compiled=False, recompute_activations=False):
            assert torch.equal(model.hidden(tokens), expected)
    with torch.no_grad():
        assert not torch.equal(model.hidden(tokens), expected)


def test_a_bf16_run_learns_what_a_fp32_run_learns():
    losses = {}
    for precision in ("float32", "bfloat16"):
        config = LoopConfig(steps=30, learning_rate=0.02, warmup_steps=2, precision=precision)
        history = train(Transformer(TINY), lambda step: Annotated(full_batch()), config)
        losses[precision] = history[-1]["loss_ce"]
        assert losses[precision] < 0.8 * history[0]["loss_ce"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch):
    from torch._inductor import cpp_builder, exc

    def none():
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(ValueError, match=r"install g\+\+.*or set compile = false"):
        check_compiler()


@pytest.mark.slow
@pytest.mark.parametrize("length", [24, 300])
@pytest.mark.parametrize("before", [0, 40])
@pytest.mark.parametrize("documents", [False, True])
def test_blocked_attention_is_causal_attention_within_bf16_rounding(length, before, documents):
    """Over a whole row, and of the last tokens of a longer one."""
    g = torch.Generator().manual_seed(0)
    seen = before + length
    shapes = ((3, 4, length, 16), (3, 2, seen, 16), (3, 2, seen, 16))
    parts = [torch.randn(shape, generator=g).bfloat16().requires_grad_() for shape in shapes]
    mask = torch.ones(1, 1, seen, seen, dtype=torch.bool).tril()
    if documents:
        segment = (torch.rand(3, seen, generator=g) < 0.1).cumsum(1)
        mask = mask & (segment[:, None, :, None] == segment[:, None, None, :])
    mask = mask[:, :, before:]
    slope = torch.randn(shapes[0], generator=g)
    ours = blocked_attention(*parts, mask, 0.25)
    ours_slopes = torch.autograd.grad(ours, parts, slope.bfloat16())
    exact = [part.detach().float().requires_grad_() for part in parts]
    twin = torch.nn.functional.scaled_dot_product_attention(*exact, attn_mask=mask, scale=0.25, enable_gqa=True)
    twin_slopes = torch.autograd.grad(twin, exact, slope.bfloat16().float())
    for mine, theirs in zip((ours, *ours_slopes), (twin, *twin_slopes), strict=True):
        assert (mine.float() - theirs).norm() < 0.01 * theirs.norm()


@pytest.mark.slow
def test_a_compiled_step_of_uneven_micro_batches_gives_the_same_bits_again():
    """Else the guard, which computes a suspicious step again, would blame the machine."""
    model = Transformer(TINY.model_copy(update={"width": 64, "heads": 4, "kv_heads": 2, "context": 520}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    tokens_BT = torch.randint(0, 20, (8, 521), generator=torch.Generator().manual_seed(0))
    batch = TokenBatch(tokens_BT, torch.ones(8, 520))
    torch._dynamo.reset()
    with computing(model, "bfloat16", compiled=True, recompute_activations=False):
        found = []
        for _ in range(2):
            measure_gradient(model, batch, 3, Objective())
            found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert torch.equal(*found)
