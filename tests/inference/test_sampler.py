"""Sampling against a brute-force twin of its distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from noria.inference import sampler
from noria.inference.request import SamplingParams
from noria.inference.sampler import distribution, penalised, request_noise, sample

PARAMS = [
    {},
    {"temperature": 0.5},
    {"top_k": 1},
    {"top_k": 3},
    {"top_k": 99},
    {"top_p": 0.3},
    {"top_p": 0.8},
    {"top_p": 1e-9},
    {"top_k": 4, "top_p": 0.7, "temperature": 2.0},
    {"min_p": 0.2},
    {"min_p": 1.0, "temperature": 1.5},
    {"min_p": 0.05, "top_k": 6, "top_p": 0.9},
]


def brute_force(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """Probabilities, token by token: sorted, cut after k, cut once the mass before a token reaches p, renormalised."""
    weights = np.exp(np.float64(logits) / temperature)
    weights /= weights.sum()
    kept, mass = {}, 0.0
    for rank, token in enumerate(sorted(range(len(weights)), key=lambda i: -weights[i])):
        if rank and (
            (top_k and rank >= top_k) or (top_p < 1 and mass >= top_p) or weights[token] < min_p * max(weights)
        ):
            break
        kept[token] = weights[token]
        mass += weights[token]
    return np.array([kept.get(token, 0.0) for token in range(len(weights))]) / mass


def logits(vocabulary=12, seed=0):
    return torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize("params", PARAMS)
def test_the_shares_of_a_fine_grid_of_uniform_numbers_are_the_brute_force_distribution(params):
    n = 20_000
    expected = brute_force(logits().tolist(), **params)
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    tokens, logprobs = sample(logits().expand(n, -1).clone(), [SamplingParams(**params)] * n, grid)
    shares = np.bincount(tokens.numpy(), minlength=12) / n
    assert np.abs(shares - expected).max() <= 1.5 / n
    np.testing.assert_allclose(logprobs.double().exp().numpy(), expected[tokens.numpy()], rtol=1e-4)


def test_greedy_takes_the_largest_and_reports_its_logprob_at_temperature_one():
    token, logprob = sample(logits()[None], [SamplingParams(temperature=0.0, top_k=2)], torch.tensor([0.9]))
    assert token.item() == logits().argmax()
    assert logprob.item() == pytest.approx(logits().log_softmax(-1).max().item(), abs=1e-6)


def test_no_row_depends_on_another():
    rows = [SamplingParams(temperature=0.0, top_k=2), *(SamplingParams(**params) for params in PARAMS)]
    stacked = torch.stack([logits(seed=seed) for seed in range(len(rows))])
    uniform = torch.rand(len(rows), generator=torch.Generator().manual_seed(0))
    together = sample(stacked.clone(), rows, uniform)
    for row, params in enumerate(rows):
        alone = sample(stacked[row : row + 1].clone(), [params], uniform[row : row + 1])
        assert together[0][row] == alone[0][0] and together[1][row] == alone[1][0]


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_give_tokens_that_can_be_sampled(params, uniform):
    row = torch.full((1, 12), -2000.0)  # probabilities that are 0, at both ends
    row[0, 4:8] = torch.tensor([1.0, 0.3, 0.2, 0.1])
    token, logprob = sample(row, [SamplingParams(**params)], torch.tensor([uniform], dtype=torch.float64))
    assert 4 <= token.item() < 8 and torch.isfinite(logprob).all()


def test_a_temperature_near_zero_is_greedy_and_finite():
    token, logprob = sample(logits()[None], [SamplingParams(temperature=1e-38)], torch.tensor([0.5]))
    assert token.item() == logits().argmax() and logprob.item() == 0.0


def test_noise_is_the_requests_own():
    one, two = SamplingParams(seed=1), SamplingParams(seed=2)
    assert np.array_equal(request_noise(one, 50)[:20], request_noise(one, 20))
    assert not np.array_equal(request_noise(one, 20), request_noise(two, 20))
    assert request_noise(SamplingParams(seed=-1), 3).shape == request_noise(SamplingParams(seed=2**70), 3).shape
    many = request_noise(one, 10_000)
    assert many.min() >= 0 and many.max() < 1 and abs(many.mean() - 0.5) < 0.02


@pytest.mark.parametrize(
    "params",
    [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1}, {"max_tokens": 0}, {"topk": 1}, {"min_p": 2}],
)
def test_values_outside_their_range_are_refused(params):
    with pytest.raises(ValidationError):
        SamplingParams(**params)


@pytest.mark.parametrize("candidates", [1, 3, 12])
def test_where_a_cut_is_looked_for_first_does_not_matter(candidates, monkeypatch):
    rows = [SamplingParams(**params) for params in PARAMS]
    stacked = torch.stack([logits(seed=seed) for seed in range(len(rows))])
    expected = distribution(stacked, rows)
    monkeypatch.setattr(sampler, "CANDIDATES", candidates)
    torch.testing.assert_close(distribution(stacked, rows), expected)


def test_the_kernel_and_pytorch_draw_the_same_tokens(monkeypatch):
    rows = [SamplingParams(), SamplingParams(temperature=0.7, top_p=0.9), SamplingParams(temperature=0.0)] * 20
    wide = torch.randn(60, 5000, generator=torch.Generator().manual_seed(0)) * 3
    uniform = torch.rand(60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens, logprobs = sample(wide, rows, uniform)
    monkeypatch.setattr(sampler, "kernels", lambda: None)
    others, expected = sample(wide, rows, uniform)
    assert torch.equal(tokens, others)
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)


def test_penalties_and_biases_are_the_formulas():
    row = torch.tensor([2.0, -1.0, 0.5, 3.0])
    found = penalised(row, SamplingParams(presence_penalty=0.5, frequency_penalty=0.25), [3], [0, 2, 2])
    assert found.tolist() == [2.0 - 0.75, -1.0, 0.5 - 1.0, 3.0]
    assert penalised(row, SamplingParams(repetition_penalty=2.0), [1, 1], [3]).tolist() == [2.0, -2.0, 0.5, 1.5]
    assert penalised(row, SamplingParams(logit_bias={1: 4.0, 3: -1.0}), [], []).tolist() == [2.0, 3.0, 0.5, 2.0]
    assert row.tolist() == [2.0, -1.0, 0.5, 3.0]
