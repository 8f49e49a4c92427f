"""Speed: MFU from tokens a second, against a peak that was measured."""

from __future__ import annotations

import pytest
import torch

from noria.model import ModelConfig
from noria.training import accounting

MODEL = ModelConfig(vocab_size=100, width=32, layers=2, heads=4, kv_heads=2, ffn_width=64, context=64)


def test_a_machine_that_only_trains_at_its_peak_has_a_utilisation_of_one():
    peak = 1e9
    assert accounting.utilisation(MODEL, peak / MODEL.flops_per_token(), peak) == pytest.approx(1.0)
    assert accounting.utilisation(MODEL, peak / MODEL.flops_per_token(32), peak, 32) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="measure_peak"):
        accounting.utilisation(MODEL, 1.0, 0.0)


def test_the_peak_is_the_best_of_the_products_timed(monkeypatch):
    seconds = {8: 1e-6, 16: 1e-6, 32: 1e-3}
    monkeypatch.setattr(accounting, "_time_product", lambda left, right: seconds[len(left)])
    peak = accounting.measure_peak(torch.bfloat16, sizes=(8, 16, 32), seconds=1e-5)
    assert peak.size == 16 and peak.flops_per_second == pytest.approx(2 * 16**3 / 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_real_measurement_has_the_order_of_magnitude_of_a_machine(dtype):
    peak = accounting.measure_peak(dtype, sizes=(64, 256), seconds=0.05)
    assert 1e7 < peak.flops_per_second < 1e16 and peak.dtype == dtype and peak.size in (64, 256)


def test_a_slow_first_step_and_one_hiccup_do_not_change_the_speed():
    assert accounting.tokens_per_second([100.0] * 7, [9.0, 2.0, 1.0, 1.0, 5.0, 1.0, 1.0]) == 100.0
    with pytest.raises(ValueError, match="too few"):
        accounting.tokens_per_second([1.0], [1.0])
