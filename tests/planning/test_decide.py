from __future__ import annotations

import json
import math
from typing import Any

import pytest

from noria.planning import BudgetError, Law, ShapeFamily
from noria.planning.decide import Wishes, decide, forecast
from noria.planning.ladder import plan_ladder

FAMILY = ShapeFamily(vocab_size=512, context=64, width_per_layer=32)
LAW = Law(E=1.5, A=30.0, alpha=0.25, B=60.0, beta=0.25)


def measured() -> dict[str, Any]:
    points = []
    for width in (32, 64, 96):
        model = FAMILY.at(width)
        for tokens in (50_000, 100_000, 200_000):
            loss = LAW.loss(model.matmul_parameters(), tokens)
            points.append({"matmul_parameters": model.matmul_parameters(), "tokens": tokens, "loss": loss})
    return {
        "points": points,
        "learning_rate": 0.04,
        "rate_width": 32,
        "rate_tokens": 50_000,
        "batch_tokens": 512,
        "family": vars(FAMILY),
    }


def wishes(**changes: Any) -> Wishes:
    plain: dict[str, Any] = {
        "flops": 2e12,
        "parameters": None,
        "train_tokens": None,
        "batch_tokens": None,
        "learning_rate": None,
        "min_parameters": 1,
        "max_parameters": 10**9,
        "serving_tokens": 0.0,
        "most_tokens": 1e12,
        "decay_share": 0.4,
        "bootstrap": 10,
    }
    return Wishes(**{**plain, **changes})


def test_the_plans_memory_is_that_of_the_optimiser_and_the_weights_of_the_run_and_nothing_else_of_it_changes():
    plain, adamw, low = (decide(measured(), wishes(**how)) for how in ({}, {"muon": False}, {"bytes_per_weight": 2}))
    taken = [plan.pop("memory_bytes")["training"] for plan in (plain, adamw, low)]
    assert taken[2] < taken[0] < taken[1]
    assert plain == adamw == low


def test_everything_auto_spends_the_budget_and_predicts_the_law():
    plan = decide(measured(), wishes())
    assert set(plan["choices"].values()) == {"auto"}
    assert plan["flops"] <= 2e12 and plan["flops"] > 1.9e12
    expected = LAW.loss(plan["matmul_parameters"], plan["train_tokens"])
    assert plan["predicted_loss"]["mean"] == pytest.approx(expected, rel=1e-4)
    assert plan["predicted_loss"]["low"] <= plan["predicted_loss"]["mean"] <= plan["predicted_loss"]["high"]
    assert plan["train_tokens"] == plan["steps"] * plan["batch_tokens"]


def test_fixed_values_are_taken_and_named():
    plan = decide(measured(), wishes(parameters=130_000, train_tokens=500_032, batch_tokens=1024, learning_rate=0.01))
    assert set(plan["choices"].values()) == {"fixed"}
    assert plan["batch_tokens"] == 1024 and plan["learning_rate"] == 0.01
    assert 500_032 - 1024 < plan["train_tokens"] <= 500_032
    assert 0.7 < plan["parameters"] / 130_000 < 1.4


def test_a_contradiction_is_refused_with_what_to_change():
    with pytest.raises(BudgetError, match="raise the budget, or lower train_tokens"):
        decide(measured(), wishes(train_tokens=10**9))
    with pytest.raises(BudgetError, match="widen the limits"):
        decide(measured(), wishes(min_parameters=100_000, max_parameters=100_001))
    with pytest.raises(BudgetError, match="more than the data offer"):
        decide(measured(), wishes(train_tokens=200_000, most_tokens=1000.0))


def test_noise_in_the_last_bits_changes_no_choice():
    shaken = measured()
    for point in shaken["points"]:
        point["loss"] *= 1 + 1e-13
    chosen = ("model", "train_tokens", "batch_tokens", "learning_rate", "schedule", "steps")
    first, second = decide(measured(), wishes()), decide(shaken, wishes())
    assert {name: first[name] for name in chosen} == {name: second[name] for name in chosen}


def test_a_diverged_point_is_left_out():
    ladder = measured()
    ladder["points"][0]["loss"] = None
    assert decide(ladder, wishes())["law"]["heldout_error"] < 0.01


def test_plan_is_plain_json_and_holds_no_clock():
    plan = decide(measured(), wishes())
    assert json.loads(json.dumps(plan, allow_nan=False)) == plan
    assert not any("second" in name for name in plan)
    assert forecast(plan, 1e10)["seconds"] == plan["flops"] / 1e10


def test_ladder_gives_every_size_the_same_share_and_keeps_to_its_budget():
    models = [FAMILY.at(width) for width in (32, 64)]
    plan = plan_ladder(models, 4e10, (0.25, 0.5, 1.0), rates=3, decay_share=0.4)
    costs = [
        plan.batch_tokens * (0.6 * steps[-1] + 0.4 * sum(steps)) * model.flops_per_token()
        for model, steps in zip(plan.models, plan.horizons, strict=True)
    ]
    assert costs[0] == pytest.approx(costs[1], rel=0.1)
    sweep = 3 * plan.sweep_steps * plan.batch_tokens * models[0].flops_per_token()
    assert 0.85 * 4e10 < sum(costs) + sweep <= 4e10


def test_with_a_longest_horizon_all_sizes_are_compared_at_equal_tokens_as_far_as_the_budget_goes():
    models, shares = [FAMILY.at(width) for width in (32, 64)], (0.25, 0.4, 0.6, 0.8, 1.0)
    plan = plan_ladder(models, 5e10, shares, 3, 0.4, fixed_batch_tokens=256, most_tokens=50_000)
    small, large = plan.horizons
    assert small == tuple(int(share * 50_000 / 256) for share in shares)
    assert large == small[: len(large)] and 0 < len(large) < len(small)
    costs = [
        256 * (0.6 * steps[-1] + 0.4 * sum(steps)) * model.flops_per_token()
        for model, steps in zip(plan.models, plan.horizons, strict=True)
    ]
    sweep = 3 * plan.sweep_steps * 256 * models[0].flops_per_token()
    assert sum(costs) + sweep == pytest.approx(plan.flops, rel=0.02) and plan.flops <= 5e10
    # Where the budget buys every horizon, less than it is spent, and the plan says so.
    low = plan_ladder(models, 4e10, shares, 3, 0.4, fixed_batch_tokens=256, most_tokens=10_000)
    assert {steps[-1] for steps in low.horizons} == {10_000 // 256} and low.flops < 0.6 * 4e10


@pytest.mark.parametrize("most_tokens", [math.inf, 50_000])
def test_repeats_share_the_budget_and_the_sweep_is_made_once(most_tokens: float):
    models, shares = [FAMILY.at(width) for width in (32, 64)], (0.25, 0.5, 1.0)
    once = plan_ladder(models, 8e10, shares, 1, 0.4, 256, most_tokens)
    assert plan_ladder(models, 24e10, shares, 1, 0.4, 256, most_tokens, repeats=3).horizons == once.horizons
    swept, thrice = (plan_ladder(models, 24e10, shares, 3, 0.4, 256, most_tokens, repeats=n) for n in (1, 3))
    costs = [
        256 * (0.6 * steps[-1] + 0.4 * sum(steps)) * model.flops_per_token()
        for model, steps in zip(thrice.models, thrice.horizons, strict=True)
    ]
    sweep = 3 * thrice.sweep_steps * 256 * models[0].flops_per_token()
    assert thrice.flops == pytest.approx(3 * sum(costs) + sweep, rel=0.03) and thrice.flops <= 24e10
    assert sum(map(len, swept.horizons)) >= sum(map(len, thrice.horizons))


def test_a_budget_that_brings_not_every_size_to_the_shortest_horizon_says_how_much_it_needs():
    models, shares = [FAMILY.at(width) for width in (32, 64)], (0.25, 0.5, 1.0)
    with pytest.raises(BudgetError, match="does not bring every size") as caught:
        plan_ladder(models, 1.2e10, shares, 1, 0.4, fixed_batch_tokens=256, most_tokens=50_000)
    needed = float(str(caught.value).split("raise it to ")[1].split(" ")[0])
    with pytest.raises(BudgetError, match="buys 2 runs of the ladder; a law needs 6"):
        plan_ladder(models, 1.01 * needed, shares, 1, 0.4, 256, 50_000)


def test_horizons_too_short_or_alike_at_equal_tokens_name_what_would_help():
    models = [FAMILY.at(width) for width in (32, 64)]
    with pytest.raises(BudgetError, match=r"leaves 6 steps .* raise system.ladder_tokens to 1.5e\+05"):
        plan_ladder(models, 4e11, (0.25, 0.5, 1.0), 1, 0.4, 4096, 100_000)
    with pytest.raises(BudgetError, match=r"width 32 are \[12, 12, 24\] steps .* two of them alike"):
        plan_ladder(models, 4e11, (0.5, 0.51, 1.0), 1, 0.4, 4096, 100_000)


def test_horizons_are_relative_to_the_longest():
    models = [FAMILY.at(width) for width in (32, 64)]
    whole = plan_ladder(models, 1e11, (0.25, 0.5, 1.0), 1, 0.4, 256, 50_000)
    assert plan_ladder(models, 1e11, (0.15, 0.3, 0.6), 1, 0.4, 256, 50_000) == whole
    assert whole.horizons[0][-1] == 50_000 // 256


def test_a_ladder_too_small_to_train_says_how_much_it_needs():
    models = [FAMILY.at(32), FAMILY.at(64)]
    with pytest.raises(BudgetError, match=r"system.ladder_flops = 1e\+07 leaves") as caught:
        plan_ladder(models, 1e7, (0.25, 0.5, 1.0), rates=1, decay_share=0.4)
    needed = float(str(caught.value).split("raise it to ")[1].split(",")[0])
    assert plan_ladder(models, 1.1 * needed, (0.25, 0.5, 1.0), rates=1, decay_share=0.4).horizons[-1][0] >= 8
