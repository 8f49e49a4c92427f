"""Integers with a scale: bounded error, exact signs and zeros, and nothing made of numbers that are none."""

from __future__ import annotations

import pytest
import torch

from noria.model.quantised import GROUP, LEVELS, quantise_groups, quantise_rows, restore_groups, restore_rows


def matrix(rows: int, columns: int) -> torch.Tensor:
    """Rows of sizes from 1e-4 to 1e4."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 4, rows)[:, None]


def test_int8_is_at_most_half_a_step_of_its_row_off() -> None:
    weight = matrix(7, 33)
    quantised, scale = quantise_rows(weight)
    assert quantised.dtype == torch.int8 and quantised.abs().max() == LEVELS
    assert ((weight - restore_rows(quantised, scale)).abs() <= scale[:, None] * (0.5 + 1e-4)).all()


def test_int4_is_at_most_half_a_step_of_its_group_off_and_takes_half_a_byte() -> None:
    weight = matrix(7, 3 * GROUP)
    packed, scale = quantise_groups(weight)
    assert packed.dtype == torch.uint8 and packed.shape == (7, 3 * GROUP // 2) and scale.shape == (7, 3)
    error = (weight - restore_groups(packed, scale)).abs().view(7, 3, GROUP)
    assert (error <= scale[..., None] * (0.5 + 1e-4)).all()
    assert error.max() > scale.max() * 0.4


def test_zeros_stay_zero_and_signs_are_symmetric() -> None:
    weight = torch.tensor([[0.0] * GROUP, [1.0, -1.0] * (GROUP // 2)])
    quantised, scale = quantise_rows(weight)
    assert quantised[0].tolist() == [0] * GROUP and quantised[1, :2].tolist() == [LEVELS, -LEVELS]
    assert torch.isfinite(scale).all()
    assert torch.equal(restore_groups(*quantise_groups(weight)), weight)


def test_the_smallest_numbers_of_fp32_do_not_become_infinite() -> None:
    weight = torch.full((1, GROUP), 1e-44)
    for quantised in (restore_rows(*quantise_rows(weight)), restore_groups(*quantise_groups(weight))):
        assert (quantised - weight).abs().max() <= 1e-37


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("quantise", [quantise_rows, quantise_groups])
def test_weights_that_are_not_finite_are_refused(quantise, value: float) -> None:
    weight = torch.ones(2, GROUP)
    weight[1, 3] = value
    with pytest.raises(ValueError, match="not finite"):
        quantise(weight)


def test_int4_refuses_rows_that_are_no_whole_groups() -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        quantise_groups(torch.ones(2, GROUP + 1))


def test_quantising_what_was_restored_changes_no_integer() -> None:
    weight = matrix(7, 2 * GROUP)
    values, scale = quantise_rows(weight)
    assert torch.equal(quantise_rows(restore_rows(values, scale))[0], values)
    packed, scale = quantise_groups(weight)
    assert torch.equal(quantise_groups(restore_groups(packed, scale))[0], packed)
