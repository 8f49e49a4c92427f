"""Muon and AdamW against their definitions, and the schedules at their ends."""

from __future__ import annotations

import pytest
import torch

from noria.model import ModelConfig, Transformer
from noria.training.optim import MuonAdamW, orthogonalise, partition
from noria.training.schedule import rate_at

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
