from __future__ import annotations

import math

import pytest

from noria.planning import (
    BudgetError,
    Law,
    MeasuredRate,
    ShapeFamily,
    batch_tokens,
    best_rate,
    choose,
    forecast_seconds,
    learning_rate,
    schedule,
    serving_bytes,
    tokens_within,
    training_bytes,
)

LAW = Law(E=1.7, A=400.0, alpha=0.34, B=410.0, beta=0.28)
FAMILY = ShapeFamily(vocab_size=2048, context=256)


def test_shapes_respect_both_limits_and_grow():
    counts = [shape.parameters() for shape in FAMILY.shapes(300_000, 3_000_000)]
    assert counts == sorted(counts)
    assert 300_000 <= counts[0] and counts[-1] <= 3_000_000 and len(counts) > 3


def test_every_shape_of_the_family_is_a_valid_model():
    for shape in FAMILY.shapes(0, 200_000_000):
        assert shape.heads % shape.kv_heads == 0 and shape.head_width == 32


def test_choice_agrees_with_the_closed_form_where_nothing_limits_it():
    family = ShapeFamily(vocab_size=2048, context=16, head_width=32)
    flops = 1e17
    choice = choose(LAW.loss, family.shapes(0, 10**9), flops)
    assert math.log(choice.model.matmul_parameters() / LAW.optimal_parameters(flops)) == pytest.approx(0, abs=0.15)


def test_choice_spends_the_budget_and_no_more():
    choice = choose(LAW.loss, FAMILY.shapes(0, 10**7), 1e13)
    spent = choice.tokens * choice.model.flops_per_token()
    assert 1e13 - choice.model.flops_per_token() <= spent <= 1e13


def test_serving_limits_bind():
    assert choose(LAW.loss, FAMILY.shapes(2_000_000, 10**7), 1e12).model.parameters() >= 2_000_000
    assert choose(LAW.loss, FAMILY.shapes(0, 400_000), 1e16).model.parameters() <= 400_000


def test_more_serving_moves_the_choice_to_a_smaller_model():
    shapes = FAMILY.shapes(0, 10**8)
    plain = choose(LAW.loss, shapes, 1e15)
    served = choose(LAW.loss, shapes, 1e15, serving_tokens=3 * plain.tokens)
    assert served.model.parameters() < plain.model.parameters()


def test_tokens_are_capped_by_the_data():
    assert choose(LAW.loss, FAMILY.shapes(0, 10**7), 1e15, most_tokens=10_000).tokens == 10_000


def test_a_budget_that_buys_nothing_says_what_to_change():
    with pytest.raises(BudgetError, match=r"raise the budget \(system.flops\)"):
        choose(LAW.loss, FAMILY.shapes(10**6, 10**7), 1e6)


def test_served_tokens_cost_a_third_of_trained_ones():
    model = FAMILY.at(64)
    flops = 100 * model.flops_per_token()
    assert tokens_within(flops, model) == 100
    assert tokens_within(flops, model, serving_tokens=150) == 50
    assert tokens_within(flops, model, serving_tokens=10_000) == 0


def test_batch_grows_with_the_data_in_powers_of_two_of_rows():
    batches = [batch_tokens(tokens, 256) for tokens in (1e5, 1e6, 1e7, 1e9, 1e12)]
    assert batches == sorted(batches) and batches[0] == 256
    assert all(math.log2(batch / 256).is_integer() for batch in batches)
    assert all(tokens / batch >= 320 for tokens, batch in zip((1e6, 1e7, 1e9), batches[1:], strict=False))


def test_rate_grows_with_the_root_of_the_batch():
    assert learning_rate(MeasuredRate(0.01, 1024, 64, 1e5), 4096, 64, 1e5) == 0.02


def test_rate_falls_with_the_width():
    assert learning_rate(MeasuredRate(0.04, 1024, 32, 1e5), 1024, 128, 1e5) == 0.01


def test_rate_falls_with_the_horizon():
    assert learning_rate(MeasuredRate(0.04, 1024, 32, 1e5), 1024, 32, 1e6) == round(0.04 * 10**-0.32, 3)


def test_best_rate_is_the_vertex_of_a_parabola_in_log_rate():
    rates = (0.001, 0.002, 0.004, 0.008)
    losses = [(math.log(rate) - math.log(0.003)) ** 2 + 4 for rate in rates]
    assert best_rate(zip(rates, losses, strict=True)) == 0.003


def test_best_rate_at_the_edge_is_the_measured_one_and_divergence_is_ignored():
    assert best_rate([(0.001, 5.0), (0.002, 4.0), (0.004, math.nan)]) == 0.002
    with pytest.raises(BudgetError, match="diverged"):
        best_rate([(0.001, math.inf)])


def test_schedule_parts_fit_into_the_run():
    plan = schedule(1_000_000, parameters=2_000_000, decay_share=0.2)
    assert (plan.warmup_tokens, plan.decay_tokens) == (50_000, 200_000)


def test_forecast_is_flops_over_speed():
    assert forecast_seconds(1e12, 1e11) == 10
    with pytest.raises(BudgetError, match="positive"):
        forecast_seconds(1e12, 0)


def test_memory_grows_with_rows_only_in_what_depends_on_them():
    model = FAMILY.at(128)
    one, two = training_bytes(model, rows=1), training_bytes(model, rows=2)
    assert (one.weights, one.gradients, one.optimiser) == (two.weights, two.gradients, two.optimiser)
    assert two.activations == 2 * one.activations and two.logits == 2 * one.logits
    assert one.weights == 4 * model.parameters()


def test_serving_memory_is_weights_and_cache():
    model = FAMILY.at(128)
    assert serving_bytes(model, 0, bytes_per_weight=1) == model.parameters()
    assert serving_bytes(model, 3) - serving_bytes(model, 2) == 256 * model.cache_bytes_per_token(4)
