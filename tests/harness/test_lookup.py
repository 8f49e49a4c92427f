"""The environment's gates: gold is 1, null and random are about 0, cheats do not pay, splits share no chain."""

from __future__ import annotations

import random

import pytest

from noria.harness import Budget, ScriptedSampler, load_program, rollout
from noria.harness.environments import lookup
from noria.harness.environments.lookup import lookup_grader
from noria.types import seed_of

BUDGET = Budget(turns=5, tokens_per_turn=12, context=256)
SPLITS = ("train", "heldout", "heldout_keys", "heldout_hops")


def grade(policy, split, tokenizer, tools, count=60):
    grader = lookup_grader()
    tasks = lookup.generate(count, 3, split, grader.ref)
    seeds = [seed_of(task.id) for task in tasks]
    sampler = ScriptedSampler(tokenizer, policy)
    traces = rollout(tasks, seeds, sampler, tokenizer, load_program("files"), budget=BUDGET, tools=tools)
    return tasks, traces, grader.grade(tasks, traces)


def success(scores):
    return sum(score.components["outcome"] for score in scores) / len(scores)


@pytest.mark.parametrize("split", SPLITS)
def test_gold_scores_one_on_every_split(split, tokenizer, tools):
    tasks, traces, scores = grade(lookup.gold, split, tokenizer, tools, 20)
    assert [score.value for score in scores] == [1.0] * len(scores)
    assert all(
        trace.facts["tool_calls"] == len(task.hidden["chain"]) for task, trace in zip(tasks, traces, strict=True)
    )
    assert max(len(node.call.prompt_ids) for trace in traces for node in trace.nodes if node.call) < 64


CHEATS = {
    "silent": lambda messages, seed: "",
    "guess": lambda messages, seed: str(random.Random(seed).randrange(10, 100)),
    "name_every_number": lambda messages, seed: " ".join(map(str, range(10, 100))),
    "only_list": lambda messages, seed: "<|call|>list" if len(messages) < 3 else messages[-1].content,
    "read_the_answer": lambda messages, seed: "<|call|>read answer" if len(messages) < 3 else "42",
    "call_for_ever": lambda messages, seed: "<|call|>nothing",
    "echo_the_first_file": lambda messages, seed: "<|call|>read /etc/passwd" if len(messages) < 3 else "value",
}


@pytest.mark.parametrize("name", CHEATS)
def test_cheats_and_idlers_get_about_nothing(name, tokenizer, tools):
    *_, scores = grade(CHEATS[name], "train", tokenizer, tools)
    assert success(scores) <= 0.05


def test_invalid_calls_cost_and_are_reported_apart(tokenizer, tools):
    *_, scores = grade(CHEATS["call_for_ever"], "train", tokenizer, tools, 4)
    for score in scores:
        assert score.value == pytest.approx(-0.3) and score.components["invalid_calls"] == 5
        assert score.components["outcome"] == 0 and score.components["invalid_call_cost"] == pytest.approx(-0.3)


def test_hasty_demonstrations_are_biased_as_asked(tokenizer, tools):
    tasks, traces, _ = grade(lookup.hasty(0.6), "train", tokenizer, tools, 150)
    two_hops = [
        trace.facts["tool_calls"] == 2
        for task, trace in zip(tasks, traces, strict=True)
        if len(task.hidden["chain"]) == 2
    ]
    assert 0.45 < sum(two_hops) / len(two_hops) < 0.75


def test_splits_share_no_task_and_hold_out_what_they_say():
    ref = lookup_grader().ref
    tasks = {split: lookup.generate(150, 5, split, ref) for split in SPLITS}
    chains = {split: {tuple(task.hidden["chain"]) for task in made} for split, made in tasks.items()}
    assert not chains["train"] & chains["heldout"]
    assert all(set(chain) <= set(lookup.HELDOUT_WORDS) for chain in chains["heldout_keys"])
    assert {len(chain) for chain in chains["heldout_hops"]} == {3}
    assert {len(chain) for chain in chains["train"]} == {1, 2}
    for made in tasks.values():
        assert len({task.id for task in made}) == 150
        assert all(task.hidden["files"][task.hidden["chain"][-1]] == f"value {task.answer}" for task in made)


def test_equal_arguments_give_equal_tasks_and_too_many_are_refused():
    ref = lookup_grader().ref
    assert lookup.generate(20, 1, "train", ref) == lookup.generate(20, 1, "train", ref)
    assert lookup.generate(20, 1, "train", ref) != lookup.generate(20, 2, "train", ref)


def test_a_broken_rollout_is_a_failed_grading(tokenizer, tools):
    from dataclasses import replace

    tasks, traces, _ = grade(lookup.gold, "train", tokenizer, tools, 3)
    broken = [
        replace(traces[0], outcome="sandbox_error"),
        replace(traces[1], facts={**traces[1].facts, "backstop_fired": 1}),
        replace(traces[2], task_id="another"),
    ]
    scores = lookup_grader().grade(tasks, broken)
    assert [score.reason for score in scores] == ["sandbox", "timeout", "invalid_task"]
    assert all(score.value is None for score in scores)
