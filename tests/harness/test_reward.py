"""Rewards from traces: vetoes, clamps, penalties and annealing hold what they promise."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from noria.harness import reward
from noria.harness.reward import Parts, total
from noria.types import EndpointReply, GraderRef, Message, ModelCall, Node, Task, ToolUse, Trace


def trace(*nodes, facts=None):
    return Trace("t", "task", tuple(nodes), 0, "h", "finished", facts or {})


def said(text, tokens=4):
    return Node((), Message("assistant", text), ModelCall((1,), (2,) * tokens, (0.0,) * tokens))


def test_every_part_is_a_column_and_the_value_is_their_sum():
    value, columns = total(Parts(1.0, {"a": -0.2}, {"b": 0.1}, {"tampered": 0.0}, {"turns": 7.0}))
    assert value == pytest.approx(0.9)
    assert columns == {"outcome": 1.0, "a": -0.2, "b": 0.1, "veto_tampered": 0.0, "turns": 7.0}


def test_a_veto_takes_what_is_positive_and_keeps_what_is_negative():
    assert total(Parts(1.0, {"bonus": 0.5}, vetoes={"tampered": 1.0}))[0] == 0.0
    assert total(Parts(0.0, {"invalid_call_cost": -0.3}, vetoes={"tampered": 2.0}))[0] == -0.3


def test_two_parts_of_one_name_are_refused():
    with pytest.raises(ValueError, match="named a"):
        total(Parts(1.0, {"a": 1.0}, {"a": 1.0}))


def test_invalid_calls_always_cost_and_never_pay():
    costs = [reward.invalid_call_cost(count) for count in (-2, 0, 1, 2, 3, 100)]
    assert costs == pytest.approx([0, 0, -0.1, -0.2, -0.3, -0.3])


@pytest.mark.parametrize("q", [0.5, 0.999999, 1.0, 1.000001, 2.0])
def test_length_penalty_rises_ever_more_slowly(q):
    costs = [reward.length_penalty(usage, 0.01, q) for usage in (0, 100, 200, 300)]
    steps = [after - before for before, after in pairwise(costs)]
    assert costs[0] == 0 and steps[0] > steps[1] > steps[2] > 0


def test_length_penalty_is_continuous_at_q_1_and_linear_towards_q_0():
    assert reward.length_penalty(500, 0.01, 1.0) == pytest.approx(math.log(6) / 0.01)
    assert reward.length_penalty(500, 0.01, 1 + 1e-6) == pytest.approx(reward.length_penalty(500, 0.01, 1.0), rel=1e-4)
    assert reward.length_penalty(500, 0.01, 1e-9) == pytest.approx(500)
    with pytest.raises(ValueError, match="k > 0"):
        reward.length_penalty(1, 0, 0.5)


def test_usage_weighs_thinking_calls_output_and_turns():
    used = trace(
        said("<|call|>read a", 6), Node((), Message("tool", "x")), said("42", 2), said("<think>abcd</think>wxyz", 8)
    )
    assert reward.weighted_usage(used, thinking=10, call=1, output=100, turn=1000) == 3 * 1000 + 6 + 200 + 40 + 400


def counted(text, prompt_tokens, sampled_tokens, *calls):
    reply = EndpointReply("m", prompt_tokens, sampled_tokens, calls)
    return Node((), Message("assistant", text), ModelCall((), (), (), endpoint=reply))


def test_usage_of_an_endpoint_is_what_it_counted_and_unknown_where_it_did_not():
    weights = {"thinking": 10, "call": 1, "output": 100, "turn": 1000}
    calls, answers = counted("<tool_call>...</tool_call>", 9, 6, ("read", "{}")), counted("42", 20, 2)
    assert reward.weighted_usage(trace(calls, answers), **weights) == 2 * 1000 + 6 + 200
    assert reward.weighted_usage(trace(calls, counted("42", 0, 0)), **weights) is None
    assert reward.weighted_usage(trace(), **weights) == 0


def test_annealing_starts_where_it_says_and_ends_at_zero():
    lambdas = [reward.annealed(0.3, step, 11) for step in range(-1, 13)]
    assert lambdas[0] == lambdas[1] == 0.3 and lambdas[11:] == [0.0, 0.0, 0.0]
    assert all(after <= before for before, after in pairwise(lambdas))
    assert reward.annealed(4, 0, 5, end=2) == 4 and reward.annealed(4, 4, 5, end=2) == 2
    assert reward.annealed(1.0, 0, 1) == 0.0


def test_with_lambdas_at_zero_only_the_outcome_counts():
    assert reward.parl_reward(1.0, 1.0, 1.0, (0.0, 0.0)) == 1.0
    assert reward.parl_reward(0.0, 1.0, 0.5, (0.2, 0.1)) == pytest.approx(0.25)


def test_sub_agents_for_show_earn_no_finish_and_more_of_them_no_more():
    assert reward.parallel_parts(0, 0, 0) == {"r_parallel": 0.0, "r_finish": 0.0}
    assert reward.parallel_parts(5, 0, 0)["r_parallel"] == 0.0
    assert reward.parallel_parts(3, 3, 0) == {"r_parallel": 1.0, "r_finish": 0.0}
    assert reward.parallel_parts(2, 2, 2) == reward.parallel_parts(9, 9, 9) == {"r_parallel": 1.0, "r_finish": 1.0}


def test_f_beta_is_f1_at_one_and_leans_to_recall_above():
    assert reward.f_beta("ab", "ab", 4) == 1.0 and reward.f_beta("", "ab", 4) == reward.f_beta("c", "ab", 4) == 0.0
    assert reward.f_beta("a", "ab", 1) == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert reward.f_beta("abcd", "ab", 4) > reward.f_beta("a", "ab", 4)


def test_pruning_a_seen_target_still_counts_for_the_trajectory():
    assert reward.trajectory_recall({"a", "b"}, {"a", "b"}) == 1.0  # seen, whether or not it is still kept
    kept_all = reward.context_reward(1.0, 1.0, 1.0, 0.0, 0.0)
    pruned_all = reward.context_reward(reward.f_beta((), "ab", 2), reward.trajectory_recall("ab", "ab"), 0.0, 0.0, 0.0)
    assert kept_all == 2.0 and pruned_all == pytest.approx(0.3)


def test_penalties_never_raise_a_reward_and_never_take_it_below_the_floor():
    assert reward.context_reward(0.0, 0.0, 0.0, 0.5, 0.5) == 0.0
    assert reward.context_reward(0.1, 0.1, 0.0, 0.5, 0.5) == reward.SMALLEST_REWARD
    assert reward.context_reward(1.0, 1.0, 1.0, 0.1, 0.2) == pytest.approx(1.7)


def test_only_unbroken_streaks_of_pruning_cost():
    prune, search = "prune_chunks", "search"
    assert reward.prune_cost([prune] * 3 + [search] + [prune] * 3) == 0
    assert reward.prune_cost([prune] * 5) == pytest.approx(0.2) and reward.prune_cost([prune] * 50) == 0.5


def test_turns_are_free_up_to_64_and_dearest_from_128():
    assert [reward.turn_cost(turns) for turns in (1, 64, 96, 128, 500)] == [0, 0, 0.25, 0.5, 0.5]


def test_altered_files_are_those_that_end_other_than_they_began():
    task = Task("task", (), GraderRef("g", "1"), "", "f", "agent", hidden={"files": {"a": "1", "b": "2", "c": "3"}})
    changed = [
        ToolUse("w", files={"a": "9"}),
        ToolUse("w", files={"a": "1", "b": None}),
        ToolUse("w", files={"d": "4"}),
    ]
    done = trace(*(Node((), Message("tool", ""), use=use) for use in changed))
    assert reward.altered(task, done, ["a", "b", "c"]) == ["b"]
    assert reward.edit_rate([done, trace()]) == 0.5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, None, "3"])
def test_a_fact_that_is_no_count_counts_nothing(value):
    assert reward.count(trace(facts={"invalid_calls": value}), "invalid_calls") == 0.0
