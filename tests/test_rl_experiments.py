"""The RL experiments run from end to end on a tiny model: their numbers mean nothing, their wiring does."""

from __future__ import annotations

import pytest

from experiments import advantages, cold_start, nano_rl, noisy_reward, ppo_or_grpo
from experiments.nano_rl import Start
from experiments.verdict import judge
from noria.evals.benchmarks import grade as exact_grade
from noria.posttraining.task_set import make_task_set
from noria.types import Message, Node, Trace
from tests.tiny_model import write_tiny_model


@pytest.fixture
def chain(tmp_path, monkeypatch):
    monkeypatch.setattr(nano_rl, "HELDOUT", 2)
    base, cold = write_tiny_model(tmp_path / "base"), write_tiny_model(tmp_path / "cold", seed=1)
    (tmp_path / "tasks").mkdir()
    make_task_set(tmp_path / "tasks", lambda *_: None, demonstrations=2, rl_tasks=4, general_demonstrations=2, seed=0)
    return Start(base, cold, tmp_path / "tasks")


@pytest.mark.slow
def test_every_arm_of_every_experiment_runs(chain):
    assert (
        {task.domain for task in chain.training_tasks} == {task.domain for task in chain.heldout} == {"maths", "logic"}
    )
    assert not {task.id for task in chain.training_tasks} & {task.id for task in chain.heldout}
    for form in advantages.FORMS:
        rewards, accuracy = advantages.run(chain, form, 0, steps=1)
        assert len(rewards) == 1 and 0 <= accuracy <= 1
    grpo, ppo = (ppo_or_grpo.run(chain, name, 1e-3, 0, steps=2) for name in ("grpo", "ppo"))
    assert grpo.rewards[0] == ppo.rewards[0] and grpo.sampled_tokens > 0  # the first rollouts are the same
    assert ppo_or_grpo.state_bytes(chain, "ppo") > 1.9 * ppo_or_grpo.state_bytes(chain, "grpo")
    assert len(noisy_reward.run(chain, noisy_reward.noisy(0.3, 0), 0, steps=1)) == 3
    _, _, traces = cold_start.run(chain, False, 0, steps=1)
    assert 0 < cold_start.distinct_bigrams(traces) <= 1
    assert sum(cold_start.shares(traces).values()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("premise", "verdict"), [(None, "reproduced"), ([0.2, 0.3, 0.2], "reproduced"), ([0.2, -0.1, 0.0], "untried")]
)
def test_a_claim_is_untried_where_its_premise_does_not_hold(premise, verdict):
    assert judge("name", "claim", [0.1, 0.2, 0.15], "unit", premise=premise).verdict == verdict


def said(task, answer, number=0):
    reply = Node((), Message("assistant", f"<think>so</think>{answer}"))
    return Trace(f"t{number}", task.id, (reply,), 0, "plain", "finished")


def test_the_asked_share_of_verdicts_is_flipped_and_the_same_ones_each_time(chain):
    task = chain.heldout[0]
    tasks, traces = [task] * 400, [said(task, task.answer if n % 2 else "?", n) for n in range(400)]
    clean = [score.value for score in exact_grade(tasks, traces)]
    noisy = [score.value for score in noisy_reward.noisy(0.3, 0)(tasks, traces)]
    flipped = sum(one != other for one, other in zip(clean, noisy, strict=True)) / 400
    assert abs(flipped - 0.3) < 0.07 and noisy == [s.value for s in noisy_reward.noisy(0.3, 0)(tasks, traces)]
    assert [score.value for score in noisy_reward.noisy(0.0, 0)(tasks, traces)] == clean


def test_the_coarse_reward_reads_the_first_character_alone(chain):
    task = chain.heldout[0]
    values = [
        score.value
        for score in noisy_reward.coarse([task] * 3, [said(task, a) for a in (task.answer, task.answer[0] + "xx", "~")])
    ]
    assert values == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("reply", "outcome", "fault"),
    [
        ("<think>2+3=5</think>5", "finished", ""),
        ("<think>so, so, so, so, so</think>5", "finished", "repetitive"),
        ("<think>так 2+3</think>5", "finished", "mixed_language"),
        ("<think>2+3", "truncated", "truncated"),
        ("5", "finished", "no_thinking_or_answer"),
    ],
)
def test_the_first_fault_of_a_reply_is_named(reply, outcome, fault):
    trace = Trace("t", "t", (Node((), Message("assistant", reply)),), 0, "plain", outcome)
    assert cold_start.fault(trace) == fault
