"""Advantages, annotation and the whole path from prompt to a better policy."""

from __future__ import annotations

import statistics
from collections import Counter

import pytest
import torch

from noria.inference import Engine, Request, SamplingParams, score
from noria.model import ModelConfig, Transformer
from noria.posttraining import GrpoConfig, annotate, group_advantages, improve
from noria.posttraining.grpo import rollout_metrics, step_tasks, with_reference
from noria.training import Progress
from noria.training.objectives import Objective
from noria.training.step import loss_sums, weighted_tokens
from noria.types import GraderRef, Message, ModelCall, Node, Score, Task, Trace

GRADER = GraderRef("g", "1")
TINY = ModelConfig(vocab_size=24, width=16, layers=1, heads=2, kv_heads=1, ffn_width=32, context=16)


def tasks(count):
    return [Task(f"task {i}", (Message("user", "?"),), GRADER, str(10 + i), "f", "d") for i in range(count)]


def trace(*calls, task_id="task 0", outcome="finished"):
    nodes = [Node((), Message("user", "?")), *(Node((0,), Message("assistant", "a"), call) for call in calls)]
    return Trace("t", task_id, tuple(nodes), 0, "plain", outcome)


def call(prompt, sampled, logprobs=None):
    return ModelCall(tuple(prompt), tuple(sampled), tuple(logprobs or [-1.0] * len(sampled)))


def graded(value):
    return Score("graded", GRADER, value)


FAILED = Score("failed", GRADER, None, "timeout")


def test_advantages_are_the_formula():
    rewards = [1.0, 0.0, 0.0, 0.5]
    assert group_advantages(rewards) == pytest.approx([0.625, -0.375, -0.375, 0.125])
    deviation = statistics.pstdev(rewards)
    assert group_advantages(rewards, "std") == pytest.approx([a / deviation for a in group_advantages(rewards)])


@pytest.mark.parametrize("form", ["mean", "std"])
def test_advantages_sum_to_zero_and_ignore_a_shift(form):
    rewards = [0.3, 1.0, 0.0, 0.7, 0.7]
    found = group_advantages(rewards, form)
    assert sum(found) == pytest.approx(0, abs=1e-12)
    assert group_advantages([reward + 5 for reward in rewards], form) == pytest.approx(found)


@pytest.mark.parametrize("form", ["mean", "std"])
def test_a_failed_grading_takes_no_part(form):
    with_failed = group_advantages([1.0, None, 0.0, None, 0.0], form)
    assert with_failed[1] == with_failed[3] == 0.0
    assert [with_failed[0], with_failed[2], with_failed[4]] == group_advantages([1.0, 0.0, 0.0], form)


@pytest.mark.parametrize("rewards", [[1.0] * 4, [0.0] * 4, [None] * 4, [None, 1.0, None], [0.5], [0.1 + 0.2] * 3])
def test_groups_without_variance_have_exactly_zero_advantage(rewards):
    for form in ("mean", "std"):
        assert group_advantages(rewards, form) == [0.0] * len(rewards)


def test_annotation_marks_exactly_the_sampled_tokens_with_their_own_logprobs():
    """Two turns merge into one row; the tool result between them has no weight."""
    turns = (call([1, 4], [7, 8, 2], [-0.1, -0.2, -0.3]), call([1, 4, 7, 8, 2, 6, 20, 5], [9, 2], [-0.4, -0.5]))
    rewritten = (call([1, 5], [11], [-0.6]), call([1, 6, 5], [12, 13], [-0.7, -0.8]))
    batch = annotate([trace(*turns), trace(*rewritten), trace(call([1], [3]))], [0.5, -2.0, 0.0], pad=0)
    assert batch.tokens_BT.tolist() == [
        [1, 5, 11, 0, 0, 0, 0, 0, 0, 0],
        [1, 6, 5, 12, 13, 0, 0, 0, 0, 0],
        [1, 4, 7, 8, 2, 6, 20, 5, 9, 2],
    ]
    found = {}
    for row, column in batch.w_rl.nonzero().tolist():
        token = batch.tokens_BT[row, column + 1].item()
        found[row, token] = (batch.behaviour_logprob[row, column].item(), batch.advantage[row, column].item())
    expected = {(0, 11): (-0.6, -2.0), (1, 12): (-0.7, -2.0), (1, 13): (-0.8, -2.0)}
    expected |= {(2, 7): (-0.1, 0.5), (2, 8): (-0.2, 0.5), (2, 9): (-0.4, 0.5)}
    assert {key: pytest.approx(value) for key, value in expected.items()} == {
        key: value for key, value in found.items() if key != (2, 2)
    }
    assert batch.behaviour_logprob[2].tolist() == pytest.approx([0, -0.1, -0.2, -0.3, 0, 0, 0, -0.4, -0.5])
    assert weighted_tokens(batch) == {"rl": 8.0}
    assert torch.equal(batch.w_rl != 0, batch.advantage != 0)


def test_groups_without_signal_annotate_to_a_batch_that_weighs_nothing():
    batch = annotate([trace(call([1], [3])), trace()], [0.0, 1.0], pad=0)
    assert weighted_tokens(batch) == {} and loss_sums(Transformer(TINY), batch, Objective()) == {}


def test_reference_logprobs_are_the_references_own_on_padded_rows_too():
    reference = Transformer(TINY, seed=3)
    torch.nn.init.normal_(reference.blocks[0].attention.output.weight)
    short, long = trace(call([1, 5], [7])), trace(call([1, 5, 9], [7, 8, 2]))
    batch = with_reference(annotate([short, long], [1.0, -1.0], pad=0), reference, 0.1)
    for row, (ids, sampled) in enumerate([([1, 5, 7], 1), ([1, 5, 9, 7, 8, 2], 3)]):
        alone = score(reference, [ids])[0][-sampled:]
        assert batch.reference_logprob[row][batch.w_rl[row] != 0].tolist() == pytest.approx(alone, abs=1e-5)
    torch.testing.assert_close(batch.w_kl, batch.w_rl * 0.1)
    assert loss_sums(reference, batch, Objective())["kl"].item() == pytest.approx(0, abs=1e-9)


def test_on_policy_rollouts_have_importance_one():
    """What the engine recorded and what the trainer computes agree: the loss is exactly -sum A over sampled tokens."""
    model = Transformer(TINY, seed=1).eval()
    asked = [Request([1, 4 + i], SamplingParams(max_tokens=6, seed=i)) for i in range(8)]
    found = Engine(model, 2).generate(asked)
    traces = [trace(call(r.prompt_ids, c.token_ids, c.logprobs)) for r, c in zip(asked, found, strict=True)]
    advantages = [1.0, -1.0, 0.5, 2.0, -0.5, 0.25, 1.0, -3.0]
    batch = annotate(traces, advantages, pad=0)
    expected = -sum(a * len(c.token_ids) for a, c in zip(advantages, found, strict=True))
    assert loss_sums(model, batch, Objective())["rl"].item() == pytest.approx(expected, abs=1e-3)


def test_prompts_are_passes_over_all_tasks_and_a_function_of_seed_and_step():
    pool = tasks(7)
    drawn = [task.id for step in range(14) for task in step_tasks(pool, 3, step, seed=5)]
    epochs = [drawn[start : start + 7] for start in range(0, 42, 7)]
    assert all(Counter(epoch) == Counter(task.id for task in pool) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert step_tasks(pool, 3, 4, 5) == step_tasks(pool, 3, 4, 5)
    assert drawn != [task.id for step in range(14) for task in step_tasks(pool, 3, step, seed=6)]
    assert Counter(task.id for task in step_tasks(tasks(2), 5, 0, 0)).total() == 5


def test_metrics_keep_failures_out_of_the_reward():
    traces = [trace(call([1], [3, 2], [-0.5, -1.5])), trace(call([1], [3]), outcome="truncated"), trace(), trace()]
    scores = [graded(1.0), graded(0.0), FAILED, FAILED]
    metrics = rollout_metrics(traces, scores, group=2)
    assert metrics["reward"] == 0.5 and metrics["grading_failed"] == 0.5
    # The second group was not graded at all: that is told by grading_failed, and says nothing of variance.
    assert metrics["zero_variance_groups"] == 0.0 and metrics["truncated"] == 0.25
    assert rollout_metrics(traces, [graded(1.0)] * 4, group=2)["zero_variance_groups"] == 1.0
    assert metrics["entropy"] == pytest.approx(1.0) and metrics["reply_tokens"] == pytest.approx(0.75)


class Bandit:
    """Each task pays for one token, told by its prompt's last token."""

    def __init__(self, model):
        self.engine, self.seeds = Engine(model, 2), []

    def roll(self, chosen, seeds):
        self.seeds.append(tuple(seeds))
        asked = [
            Request([1, int(task.answer)], SamplingParams(max_tokens=1, seed=seed))
            for task, seed in zip(chosen, seeds, strict=True)
        ]
        found = self.engine.generate(asked)
        return [
            trace(call(request.prompt_ids, completion.token_ids, completion.logprobs), task_id=task.id)
            for task, request, completion in zip(chosen, asked, found, strict=True)
        ]

    @staticmethod
    def grade(chosen, traces):
        return [
            graded(float(item.nodes[-1].call.token_ids[0] == int(task.answer)))
            for task, item in zip(chosen, traces, strict=True)
        ]


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
def test_improve_learns_a_bandit(kept):
    """The engine follows weights that are kept in bf16 while they are trained, as it does those in fp32."""
    model = Transformer(TINY)
    bandit = Bandit(model)
    config = GrpoConfig(steps=40, prompts=4, group=16, learning_rate=0.02, precision=kept, weight_precision=kept)
    history = improve(model, tasks(4), bandit.roll, bandit.grade, config, pad=0, seed=0)
    assert history[0]["reward"] < 0.3 and statistics.fmean(entry["reward"] for entry in history[-5:]) > 0.8
    for seeds in bandit.seeds:
        assert len(set(seeds)) == len(seeds)


def test_copies_of_a_task_in_one_step_are_sampled_apart():
    model = Transformer(TINY)
    bandit = Bandit(model)
    improve(model, tasks(1), bandit.roll, bandit.grade, GrpoConfig(steps=1, prompts=6, group=4), pad=0, seed=0)
    assert len(set(bandit.seeds[0])) == 24
    with pytest.raises(ValueError, match="at least one task"):
        improve(model, [], bandit.roll, bandit.grade, GrpoConfig(steps=1), pad=0, seed=0)


def test_equal_rewards_leave_the_model_bitwise_as_it_was():
    model = Transformer(TINY)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def always(chosen, traces):
        return [graded(1.0) for _ in chosen]

    config = GrpoConfig(steps=3, prompts=2, group=4, reference_kl=0.1)
    history = improve(model, tasks(2), Bandit(model).roll, always, config, pad=0, seed=0, reference=Transformer(TINY))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [entry["zero_variance_groups"] for entry in history] == [1.0] * 3


def test_an_interrupted_improvement_continues_bitwise(tmp_path):
    config = GrpoConfig(steps=5, prompts=3, group=4, learning_rate=0.02, reference_kl=0.01)

    def run(progress=None, stop_at=None):
        model = Transformer(TINY)
        bandit, calls = Bandit(model), []

        def roll(chosen, seeds):
            calls.append(1)
            if len(calls) == stop_at:
                raise KeyboardInterrupt
            return bandit.roll(chosen, seeds)

        reference = Transformer(TINY)
        return improve(model, tasks(3), roll, bandit.grade, config, 0, 7, progress, reference=reference), model

    history, model = run()
    progress = Progress(tmp_path, checkpoint_seconds=-1)
    with pytest.raises(KeyboardInterrupt):
        run(progress, stop_at=4)
    again, resumed = run(progress)
    assert again == history
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name])
