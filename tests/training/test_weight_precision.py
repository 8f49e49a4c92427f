"""Weights kept in bf16: half the state, updates that arrive on average, and runs that are as exact as in fp32."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch

from noria.inference.weights import fingerprint
from noria.model import ModelConfig, Transformer
from noria.training import Annotated, LoopConfig, Objective, Progress, TokenBatch, rounding, train
from noria.training.bf16_weights import weights_in
from noria.training.checkpoint import CheckpointError
from noria.training.compute import computing
from noria.training.critic import attach_critic
from noria.training.optim import MuonAdamW
from noria.training.parallel import Ranks
from noria.training.step import measure_gradient
from tests.model.options import OPTIONS, option, random_tokens
from tests.training.test_objectives import TINY, full_batch

LOW = {"precision": "bfloat16", "weight_precision": "bfloat16"}


def config(**changes) -> LoopConfig:
    return LoopConfig(**{"steps": 30, "learning_rate": 0.02, "warmup_steps": 2, **LOW, **changes})


def annotate(step):
    return Annotated(full_batch())


def test_matrices_gradients_and_moments_are_bf16_within_a_run_and_fp32_after_it():
    model, seen = Transformer(TINY), []

    def look(step):
        seen.append({name: (p.dtype, p.grad is None or p.grad.dtype) for name, p in model.named_parameters()})
        return annotate(step)

    train(model, look, config(steps=2))
    for name, parameter in model.named_parameters():
        kept = torch.bfloat16 if parameter.ndim >= 2 else torch.float32
        assert seen[1][name] == (kept, kept)
        assert parameter.dtype == torch.float32
        assert parameter.grad is None or parameter.grad.dtype == torch.float32


@pytest.mark.parametrize("muon", [True, False])
def test_moments_take_the_kind_of_their_weights(muon):
    model = Transformer(TINY)
    with weights_in(model, "bfloat16"):
        optimizer = MuonAdamW(model, 0.01, muon=muon)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        for parameter, state in optimizer.state.items():
            assert {value.dtype for value in state.values() if isinstance(value, torch.Tensor)} == {parameter.dtype}


def test_weights_are_fp32_again_after_a_run_that_failed():
    model = Transformer(TINY)

    def fail(step):
        raise KeyError("no batch")

    with pytest.raises(KeyError):
        train(model, fail, config())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_updates_too_small_for_bf16_arrive_on_average():
    """Weights near 1 move by 2^-12 a step, a sixteenth of what separates bf16 numbers below 1."""
    model, rate, steps = Transformer(TINY), 2.0**-12, 64
    with weights_in(model, "bfloat16"):
        weight = model.embedding.weight
        weight.data.fill_(1.0)
        optimizer = MuonAdamW(model, rate)
        moved = []
        for _ in range(steps):
            weight.grad = torch.ones_like(weight)  # AdamW then moves every weight by the rate
            optimizer.step()
            moved.append(weight.detach().clone())
    expected = 1.0 - rate * steps
    # To the nearest, not one would have moved.
    assert weight.mean().item() == pytest.approx(expected, abs=rate * steps / 10)
    assert len(weight.unique()) > 1
    # Each step has random numbers of its own: not as many weights move in each.
    assert len({before.sub(after).ne(0).sum().item() for before, after in pairwise(moved)}) > 1


def test_a_step_is_the_fp32_step_with_every_weight_rounded_to_a_neighbour(monkeypatch):
    """In blocks that do not divide a matrix; both start from numbers that bf16 holds."""
    monkeypatch.setattr(rounding, "STEP_BLOCK", 100)
    rounding._noise.cache_clear()
    exact, low = Transformer(TINY), Transformer(TINY)
    for model in (exact, low):
        for number, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter.data = torch.randn(parameter.shape, generator=generator).bfloat16().float()
    with weights_in(low, "bfloat16"):
        for model in (exact, low):
            optimizer = MuonAdamW(model, 0.1, muon=False)
            for number, parameter in enumerate(model.parameters()):
                generator = torch.Generator().manual_seed(100 + number)
                drawn = torch.randn(parameter.shape, generator=generator).bfloat16()
                parameter.grad = drawn.to(parameter.dtype)
            optimizer.step()
        gaps = [(p.float() - q).abs() / q.abs() for p, q in zip(low.parameters(), exact.parameters(), strict=True)]
    rounding._noise.cache_clear()
    assert max(gap.max().item() for gap in gaps) < 2.0**-7  # what separates neighbours, of a number's own size
    assert any(gap.max().item() > 2.0**-9 for gap in gaps)  # the nearest neighbour would be no further


@pytest.mark.parametrize("muon", [True, False])
def test_it_learns_what_a_fp32_run_learns(muon):
    full, low = (
        train(Transformer(TINY), annotate, config(muon=muon, weight_precision=kept))[-1]["loss_ce"]
        for kept in ("float32", "bfloat16")
    )
    assert low == pytest.approx(full, rel=0.06)


def test_an_interrupted_run_continues_bitwise(tmp_path):
    class Killed(Exception):
        pass

    def kill_at(step):
        if step == 17:
            raise Killed
        return annotate(step)

    whole, again = Transformer(TINY), Transformer(TINY)
    history = train(whole, annotate, config())
    with pytest.raises(Killed):
        train(again, kill_at, config(), Progress(folder=tmp_path, checkpoint_steps=5))
    again = Transformer(TINY)
    assert train(again, annotate, config(), Progress(folder=tmp_path, checkpoint_steps=5)) == history
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_a_run_in_fp32_does_not_go_on_from_bf16_weights(tmp_path):
    progress = Progress(folder=tmp_path, checkpoint_steps=5)
    train(Transformer(TINY), annotate, config(), progress)
    with pytest.raises(CheckpointError, match=r"in bfloat16, and this run has it as .* in float32"):
        train(Transformer(TINY), annotate, config(weight_precision="float32"), progress)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_computes_from_bf16_weights(name):
    """As autocast does from fp32 weights, which it rounds to the same bf16 numbers (routers decide in between)."""
    shape = option(name)
    batch = dataclasses.replace(full_batch(), w_rl=None, w_kl=None, w_kd=None)
    tokens = random_tokens(shape, *batch.tokens_BT.shape)
    batch = dataclasses.replace(batch, tokens_BT=tokens)
    losses = []
    for kept in ("float32", "bfloat16"):
        model = Transformer(shape)
        with (
            weights_in(model, kept),
            computing(model, "bfloat16", compiled=False, recompute_activations=False),
        ):
            gradient = measure_gradient(model, batch, 3, Objective())
            assert gradient.is_finite and gradient.norm > 0
            losses.append(gradient.losses["ce"])
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


def relative_error(low, full):
    return ((low.float() - full).norm() / full.norm()).item()


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_of_frequent_tokens_are_those_of_fp32_weights(tied):
    """4,096 targets of 16 ids: what is summed over tokens is summed in fp32 and rounded once."""
    shape = ModelConfig(vocab_size=64, width=32, layers=1, heads=2, kv_heads=1, ffn_width=64, context=64, tied=tied)
    tokens = torch.randint(16, (64, 65), generator=torch.Generator().manual_seed(0))
    batch = TokenBatch(tokens, torch.ones(64, 64))
    found = {}
    for kept in ("float32", "bfloat16"):
        model = Transformer(shape)
        # Numbers that bf16 holds, so that only the arithmetic differs.
        model.load_state_dict({name: value.bfloat16().float() for name, value in model.state_dict().items()})
        with weights_in(model, kept), computing(model, "bfloat16", compiled=False, recompute_activations=False):
            gradient = measure_gradient(model, batch, 64, Objective())
            found[kept] = gradient.norm, {name: p.grad.float() for name, p in model.named_parameters()}
    (full_norm, full), (low_norm, low) = found["float32"], found["bfloat16"]
    for name, gradient in full.items():
        if gradient.norm() > 0:
            assert relative_error(low[name], gradient) < 0.01, name
    assert low_norm == pytest.approx(full_norm, rel=0.005)


def test_without_a_gradient_logits_are_computed_from_fp32_states():
    tokens = full_batch().tokens_BT
    model = Transformer(TINY)
    with weights_in(model, "bfloat16"), computing(model, "bfloat16", compiled=False, recompute_activations=False):
        with torch.no_grad():
            states = model.hidden(tokens)
            logits = model.logits(states)
        assert states.dtype == logits.dtype == torch.float32
        weight = model.head.weight.detach().float()
        torch.testing.assert_close(logits, states @ weight.T, atol=1e-6, rtol=1e-6)
    assert "forward" not in vars(model.head) and "forward" not in vars(model.embedding)


def test_an_engine_notices_a_step_that_is_adamws_alone():
    for kept in ("float32", "bfloat16"):
        model = Transformer(TINY)
        with weights_in(model, kept):
            before = fingerprint(model)
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            MuonAdamW(model, 0.01, muon=False).step()
            assert all(old != new for old, new in zip(before, fingerprint(model), strict=True))


def test_adapters_critics_and_what_is_frozen_stay_in_fp32():
    model = Transformer(TINY)
    model.blocks[0].up.weight.requires_grad_(False)
    attach_critic(model, own_trunk=True)
    with weights_in(model, "bfloat16"):
        kept = {name: parameter.dtype for name, parameter in model.named_parameters() if parameter.ndim >= 2}
        assert kept.pop("blocks.0.up.weight") == torch.float32
        critics = [kept.pop(name) for name in list(kept) if name.startswith("critic.")]
        assert set(critics) == {torch.float32} and set(kept.values()) == {torch.bfloat16}


def test_it_is_refused_with_fp32_products_and_on_several_ranks():
    with pytest.raises(ValueError, match='needs precision = "bfloat16"'):
        config(precision="float32")
    with pytest.raises(ValueError, match="trains in one process only"):
        train(Transformer(TINY), annotate, config(), Progress(ranks=Ranks(0, 2)))
