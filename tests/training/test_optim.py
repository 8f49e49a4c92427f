"""Muon and AdamW against their definitions, and the schedules at their ends."""

from __future__ import annotations

import pytest
import torch

from noria.model import ModelConfig, Transformer
from noria.training.optim import MuonAdamW, orthogonalise, partition
from noria.training.schedule import decay_ends, ramped_rows, rate_at, weight_decay_for

TINY = ModelConfig(vocab_size=32, width=16, layers=2, heads=2, kv_heads=1, ffn_width=32, context=16)


def with_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("shape", [(4, 16, 16), (2, 8, 40), (3, 48, 16)])
def test_orthogonalised_matrices_have_singular_values_about_one(shape):
    """A random matrix's singular values, all of them but those near 0 that five iterations cannot lift."""
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    matrices = u @ torch.diag_embed(s.clamp_min(0.05 * s.max())) @ v
    found = torch.linalg.svdvals(orthogonalise(matrices))
    assert found.min() > 0.6 and found.max() < 1.3


def test_orthogonalised_matrices_keep_their_singular_vectors():
    u, s, v = torch.linalg.svd(torch.randn(8, 20, generator=torch.Generator().manual_seed(0)), full_matrices=False)
    turned = u.T @ orthogonalise((u * s @ v)[None])[0] @ v.T
    assert (turned - torch.diag(turned.diagonal())).abs().max() < 1e-4


def test_each_matrix_of_a_batch_is_its_own():
    matrices = torch.randn(5, 12, 8, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(orthogonalise(matrices)[order], orthogonalise(matrices[order]), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(orthogonalise(matrices)[:1], orthogonalise(matrices[:1]), atol=1e-6, rtol=1e-5)
    assert not orthogonalise(torch.zeros(1, 4, 4)).any()


def test_muon_is_nesterov_momentum_orthogonalised_and_scaled_and_decayed():
    model, rate, decay = Transformer(TINY), 0.1, 0.1
    optimizer = MuonAdamW(model, rate, weight_decay=decay)
    matrix = model.blocks[1].up.weight
    expected, momentum = matrix.detach().clone(), torch.zeros_like(matrix)
    for step in range(3):
        with_gradients(model, step)
        momentum = 0.95 * momentum + 0.05 * matrix.grad
        update = orthogonalise((0.05 * matrix.grad + 0.95 * momentum)[None])[0]
        optimizer.step()
        expected = expected * (1 - rate * decay) - rate * 0.2 * 32**0.5 * update
        torch.testing.assert_close(matrix.detach(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("muon", [True, False])
def test_the_adamw_part_is_torchs_adamw(muon):
    """Embedding, head and norms without decay; without Muon the hidden matrices too, with it."""
    ours, theirs = Transformer(TINY), Transformer(TINY)
    optimizer = MuonAdamW(ours, 0.01, weight_decay=0.3, muon=muon)
    hidden, other = partition(theirs)
    groups = [{"params": other, "weight_decay": 0.0}, {"params": hidden, "weight_decay": 0.3}]
    reference = torch.optim.AdamW(groups[:1] if muon else groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8)
    for step in range(5):
        with_gradients(ours, step)
        with_gradients(theirs, step)
        optimizer.step()
        reference.step()
    compared = partition(ours)[1] if muon else list(ours.parameters())
    twins = other if muon else list(theirs.parameters())
    assert compared and len(compared) == len(twins)
    for mine, twin in zip(compared, twins, strict=True):
        torch.testing.assert_close(mine, twin, atol=1e-6, rtol=1e-5)


def test_every_parameter_belongs_to_exactly_one_part():
    model = Transformer(TINY.model_copy(update={"tied": False}))
    hidden, other = partition(model)
    assert len({id(p) for p in [*hidden, *other]}) == len(hidden) + len(other) == len(list(model.parameters()))
    assert len(hidden) == 6 * TINY.layers
    assert any(p is model.embedding.weight for p in other) and any(p is model.head.weight for p in other)


def test_each_expert_is_orthogonalised_on_its_own():
    moe = {"experts": 3, "chosen": 1, "expert_width": 8}
    model = Transformer(ModelConfig(**{**TINY.model_dump(), "moe": moe}))
    up = model.blocks[0].moe.up
    assert any(parameter is up for parameter in partition(model)[0])
    before, rate = up.detach().clone(), 0.1
    up.grad = torch.randn(up.shape, generator=torch.Generator().manual_seed(0))
    MuonAdamW(model, rate, weight_decay=0.0).step()
    for expert in range(3):
        # From zero momentum, Nesterov's mixture points where the gradient does, and orthogonalising drops its length.
        twin = before[expert] - rate * 0.2 * max(up.shape[1:]) ** 0.5 * orthogonalise(up.grad[expert][None])[0]
        torch.testing.assert_close(up[expert].detach(), twin, atol=1e-5, rtol=1e-4)


def test_newton_schulz_in_bf16_turns_a_matrix_as_in_fp32():
    matrices = torch.randn(2, 32, 48, generator=torch.Generator().manual_seed(0))
    low, exact = orthogonalise(matrices, dtype=torch.bfloat16), orthogonalise(matrices)
    assert low.dtype == torch.float32
    assert (low - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("schedule", ["wsd", "linear", "cosine", "constant"])
def test_schedules_warm_up_to_the_peak_and_never_leave_zero_to_one(schedule):
    rates = [rate_at(schedule, step, 100, 10, 0.4) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == rates[10] == 1.0
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_schedules_end_where_they_say():
    assert rate_at("wsd", 59, 100, 10, 0.4) == 1.0 and rate_at("wsd", 60, 100, 10, 0.4) == 1.0
    assert rate_at("wsd", 61, 100, 10, 0.4) == pytest.approx(39 / 40)
    assert rate_at("wsd", 100, 100, 10, 0.4) == rate_at("linear", 100, 100, 10) == 0.0
    assert rate_at("cosine", 100, 100, 10) == pytest.approx(0.1)
    assert rate_at("constant", 99, 100, 10) == 1.0
    for schedule in ("wsd", "linear", "cosine", "constant"):
        assert rate_at(schedule, 0, 1, 0) == 1.0  # a run of one step steps


def test_wsd_s_decays_to_zero_at_every_doubling_and_returns_to_full_rate():
    assert decay_ends(400, 10) == [(0, 50), (50, 100), (100, 200), (200, 400)]
    rates = [rate_at("wsd_s", step, 400, 10, 0.4) for step in range(400)]
    for start, end in decay_ends(400, 10):
        assert rates[end - 1] <= 1 / (0.4 * (end - start)) + 1e-12
        assert rates[max(start, 10)] == rates[int(end - 0.4 * (end - start))] == 1.0
    assert all(0 < rate <= 1 for rate in rates) and rate_at("wsd_s", 0, 1, 0) == 1.0


def test_a_run_too_short_for_two_spans_of_wsd_s_is_wsd():
    wsd, repeated = ([rate_at(name, step, 60, 10, 0.3) for step in range(60)] for name in ("wsd", "wsd_s"))
    assert wsd == repeated


def test_the_batch_ramp_never_falls_and_ends_at_the_whole_batch():
    rows = [ramped_rows(step, 64, 100) for step in range(200)]
    assert rows[0] == 16 and rows == sorted(rows) and set(rows[100:]) == {64}
    assert ramped_rows(0, 1, 100) == 1 and ramped_rows(0, 64, 0) == 64


def test_weight_decay_keeps_the_time_scale_and_follows_its_power_law():
    run = {"parameters": 1e6, "train_tokens": 2e7, "batch_tokens": 1e4, "learning_rate": 0.01, "reference_tau": 0.25}
    decay = weight_decay_for(**run)
    assert 1e4 / (0.01 * decay * 2e7) == pytest.approx(0.25)
    assert weight_decay_for(**{**run, "batch_tokens": 2e4}) == pytest.approx(2 * decay)
    assert weight_decay_for(**{**run, "learning_rate": 0.02}) == pytest.approx(decay / 2)
    longer = weight_decay_for(**{**run, "train_tokens": 4e7})
    assert longer == pytest.approx(decay / 2 * 2**0.527)
