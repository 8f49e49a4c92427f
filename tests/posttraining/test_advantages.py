"""Advantages, returns, penalties and means as formulas; settings that contradict each other are refused."""

from __future__ import annotations

import statistics

import pytest
import torch
from pydantic import ValidationError

from noria.posttraining import GrpoConfig, PpoConfig, group_advantages
from noria.posttraining.advantages import batch_advantages, generalised_advantages, has_signal, overlong_penalty
from noria.posttraining.annotate import aggregated, annotate, gathered, lay_out, rows_of, spread
from noria.training import Objective
from noria.training.step import weighted_tokens
from tests.posttraining.test_grpo import call, trace

REWARDS = [1.0, 0.0, 0.0, 0.5]
FORMS = ["mean", "std", "batch_std", "rloo", "maxrl", "rank"]


def test_each_form_is_its_formula():
    mean = [reward - 0.375 for reward in REWARDS]
    assert group_advantages(REWARDS, "rloo") == pytest.approx([value * 4 / 3 for value in mean])
    others = [statistics.fmean(REWARDS[:i] + REWARDS[i + 1 :]) for i in range(4)]
    assert group_advantages(REWARDS, "rloo") == pytest.approx([r - o for r, o in zip(REWARDS, others, strict=True)])
    assert group_advantages(REWARDS, "maxrl") == pytest.approx([value / 0.375 for value in mean])
    assert group_advantages(REWARDS, "rank") == pytest.approx([1.0, -2 / 3, -2 / 3, 1 / 3])


def test_ranks_do_not_change_under_a_monotone_reward():
    assert group_advantages([reward**3 * 7 - 2 for reward in REWARDS], "rank") == group_advantages(REWARDS, "rank")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_sums_to_zero_leaves_failures_out_and_needs_variance(form):
    found = group_advantages([*REWARDS, None], form)
    assert sum(found) == pytest.approx(0, abs=1e-12) and found[-1] == 0.0
    assert found[:-1] == group_advantages(REWARDS, form)
    for flat in ([1.0] * 4, [0.0] * 4, [None] * 4, [None, 1.0, None], [0.1 + 0.2] * 3):
        assert group_advantages(flat, form) == [0.0] * len(flat) and not has_signal(flat)


def test_the_batch_deviation_is_over_all_graded_members_and_leaves_signs():
    groups = [REWARDS, [1.0, 1.0, 1.0, 1.0], [0.0, None, 1.0, 0.0]]
    plain = [value for group in groups for value in group_advantages(group)]
    graded = [
        value for value, reward in zip(plain, (r for group in groups for r in group), strict=True) if reward is not None
    ]
    scale = statistics.pstdev(graded)
    assert batch_advantages(groups, "batch_std") == pytest.approx([value / scale for value in plain])
    assert batch_advantages([[1.0, 1.0]], "batch_std") == [0.0, 0.0]


def test_maxrl_refuses_a_negative_reward():
    with pytest.raises(ValueError, match=r"rewards >= 0; got -1"):
        group_advantages([1.0, -1.0], "maxrl")


def test_returns_at_lambda_one_are_the_reward_still_to_come():
    rewards, values = [0.0, -0.5, 0.0, 2.0], [0.3, -0.2, 0.9, 1.1]
    advantages, returns = generalised_advantages(rewards, values)
    assert returns == pytest.approx([1.5, 1.5, 2.0, 2.0])
    assert advantages == pytest.approx([r - v for r, v in zip([1.5, 1.5, 2.0, 2.0], values, strict=True)])


def test_gae_is_its_sum_of_discounted_errors():
    rewards, values, gamma, lam = [0.5, 0.0, -1.0, 2.0], [0.3, -0.2, 0.9, 1.1], 0.9, 0.8
    errors = [
        reward + gamma * following - value
        for reward, value, following in zip(rewards, values, [*values[1:], 0.0], strict=True)
    ]
    expected = [sum((gamma * lam) ** k * error for k, error in enumerate(errors[t:])) for t in range(4)]
    advantages, returns = generalised_advantages(rewards, values, gamma, lam)
    assert advantages == pytest.approx(expected)
    assert returns == pytest.approx([a + v for a, v in zip(expected, values, strict=True)])
    assert generalised_advantages([], []) == ([], [])


@pytest.mark.parametrize(("tokens", "penalty"), [(1, 0.0), (60, 0.0), (80, -0.5), (100, -1.0), (101, -1.0)])
def test_the_overlong_penalty_is_linear_over_the_last_tokens(tokens, penalty):
    assert overlong_penalty(tokens, most=100, soft=40) == pytest.approx(penalty)


def batch_of_three():
    traces = [trace(call([1], [3] * n)) for n in (2, 5, 9)]
    return annotate(traces, [1.0, -1.0, 0.5], pad=0)


def test_the_mean_over_sequences_gives_each_the_same_weight_and_the_constant_ignores_what_was_sampled():
    """The loop divides by the weighted tokens n; so w/n must be 1/(S |o|), or 1 over the constant."""
    batch = batch_of_three()
    n = weighted_tokens(batch)["rl"]
    assert n == 16 and aggregated(batch, "token", 3, None) is batch
    by_sequence = aggregated(batch, "sequence", 3, None).w_rl / n
    assert by_sequence.sum(1).tolist() == pytest.approx([1 / 3] * 3)
    constant = aggregated(batch, "constant", 8, 20).w_rl / n
    assert constant[batch.w_rl != 0].tolist() == pytest.approx([1 / 160] * 16)
    assert constant.sum() == pytest.approx(0.1) and not constant[batch.w_rl == 0].any()


def test_values_are_spread_over_rows_and_gathered_again():
    """A trace that rewrote its history has two rows; its tokens keep their order over both."""
    rewritten = trace(call([1, 4], [7, 8, 2]), call([1, 5, 9, 9, 9, 9], [9, 2]))
    plain = trace(call([1], [3, 3, 2]))
    rows = rows_of([rewritten, plain], [True, True])
    batch = lay_out(rows, pad=0)
    values = [[0.1, 0.2, 0.3, 0.4, 0.5], [1.0, 2.0, 3.0]]
    laid = spread(rows, batch, values)
    assert len(rows) == 3 and not laid[batch.w_rl == 0].any()
    found = gathered(rows, batch, laid, 2)
    assert found[0] == pytest.approx(values[0]) and found[1] == pytest.approx(values[1])
    second = [row.trace == 0 and row.first == 3 for row in rows].index(True)
    assert laid[second][batch.w_rl[second] != 0].tolist() == pytest.approx([0.4, 0.5])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss": "gspo"}, 'set aggregation = "sequence"'),
        ({"loss": "gspo", "aggregation": "sequence", "dual_clip": 3.0}, "leave it out"),
        ({"loss": "cispo", "clip_high": 0.3}, "set ratio_cap"),
        ({"reference_kl": 0.1, "kl_form": "k1"}, 'set kl_in = "reward"'),
        ({"aggregation": "constant"}, "set max_tokens"),
        ({"overlong": "penalty", "max_tokens": 50}, "overlong_tokens"),
        ({"overlong": "penalty", "max_tokens": 50, "overlong_tokens": 60}, "at most that"),
        ({"lag": 1, "importance": "none"}, "older policy"),
        ({"prompts": 1, "group": 2, "minibatches": 3}, "lower it"),
        ({"advantage": "maxrl", "overlong": "penalty", "max_tokens": 9, "overlong_tokens": 3}, "another advantage"),
        ({"advantage": "maxrl", "reference_kl": 0.1, "kl_in": "reward"}, "another advantage"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_with_what_to_change(settings, said):
    with pytest.raises(ValidationError, match=said):
        GrpoConfig(steps=5, **settings)


def test_ppo_refuses_what_only_groups_have():
    with pytest.raises(ValidationError, match="refill = 0"):
        PpoConfig(steps=5, refill=1)
    with pytest.raises(ValidationError, match="lower it"):
        PpoConfig(steps=5, critic_warmup=5)
    with pytest.raises(ValidationError, match="advantage"):
        PpoConfig(steps=5, advantage="mean")


def test_bounds_follow_the_loss_unless_they_are_given():
    assert GrpoConfig(steps=1).objective() == Objective()
    gspo = GrpoConfig(steps=1, loss="gspo", aggregation="sequence").objective().policy
    assert (gspo.clip_low, gspo.clip_high) == (3e-4, 4e-4)
    given = GrpoConfig(steps=1, clip_low=0.1, clip_high=10.0).objective().policy
    assert (given.clip_low, given.clip_high) == (0.1, 10.0)
    assert torch.tensor(gspo.clip_high) > 0
