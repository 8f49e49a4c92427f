"""The RL loop: which policy samples what, several steps on one batch, refills, exact resume wherever it is killed."""

from __future__ import annotations

import math
import os
import signal
import statistics
import subprocess
import sys
import time

import pytest
import torch

from noria.inference import Request, SamplingParams, score
from noria.model import Transformer
from noria.posttraining import GrpoConfig, PpoConfig, group_advantages, improve, improve_with_critic
from noria.posttraining.grpo import group_batch
from noria.posttraining.reinforce import prompt_rounds
from noria.posttraining.rollouts import Kept, Rollouts, read_rollouts, write_rollouts
from noria.training import Progress
from noria.training.checkpoint import complete, steps_of
from noria.training.critic import critic_of
from noria.training.integrity import checksum
from tests.posttraining.test_grpo import FAILED, TINY, Bandit, call, graded, tasks, trace

SMALL = {"prompts": 3, "group": 4, "learning_rate": 0.02}


def half(chosen, traces):
    """About half of all first replies are right, so that nearly every step has something to learn."""
    sampled = [item.nodes[-1].call.token_ids[0] for item in traces]
    return [graded(float(token % 2 == int(task.answer) % 2)) for task, token in zip(chosen, sampled, strict=True)]


def run(config, progress=None, roll=None, seed=7, reference=None, model=None):
    model = model or Transformer(TINY)
    bandit = Bandit(model)
    train = improve_with_critic if isinstance(config, PpoConfig) else improve
    history = train(
        model, tasks(8), roll(bandit) if roll else bandit.roll, half, config, 0, seed, progress, None, reference
    )
    return history, model


def assert_same(left, right):
    assert left[0] == right[0]
    for name, tensor in left[1].state_dict().items():
        assert torch.equal(tensor, right[1].state_dict()[name]), name


SETTINGS = {
    "lag 1": GrpoConfig(steps=5, lag=1, **SMALL),
    "lag 2": GrpoConfig(steps=4, lag=2, importance="band", **SMALL),
    "minibatches": GrpoConfig(steps=3, minibatches=2, epochs=2, **SMALL),
    "all at once": GrpoConfig(
        steps=3, lag=1, minibatches=2, refill=2, loss="gspo", aggregation="sequence", reference_kl=0.01, **SMALL
    ),
    "ppo": PpoConfig(steps=3, minibatches=2, critic_warmup=1, **SMALL),
    "ppo, bf16 weights": PpoConfig(
        steps=3, minibatches=2, critic_warmup=1, precision="bfloat16", weight_precision="bfloat16", **SMALL
    ),
    "bf16 weights": GrpoConfig(
        steps=3, lag=1, reference_kl=0.01, precision="bfloat16", weight_precision="bfloat16", **SMALL
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_killed_anywhere_and_started_again_ends_bitwise_the_same(tmp_path, name):
    """Killed before each sampling, and after each optimiser step, with a checkpoint at every or every second step."""
    config, reference = SETTINGS[name], Transformer(TINY, seed=5)
    whole = run(config, reference=reference)

    class Killed(BaseException):
        pass

    killed = set()  # the last moments of some settings are never reached: those runs just end
    for every in (1, 2):
        for victim in range(1, config.steps + config.lag):
            for place in ("sampling", "step"):
                folder = tmp_path / f"{every} {victim} {place}"
                calls = []

                def dying(bandit, victim=victim, place=place, calls=calls):
                    def roll(chosen, seeds):
                        calls.append(1)
                        if place == "sampling" and len(calls) > victim:
                            raise Killed
                        return bandit.roll(chosen, seeds)

                    return roll

                def told(step, steps, metrics, victim=victim, place=place):
                    if place == "step" and step == victim:
                        raise Killed

                progress = Progress(folder, checkpoint_steps=every, checkpoint_seconds=1e9, on_step=told)
                try:
                    run(config, progress, dying, reference=reference)
                except Killed:
                    killed.add((every, place, victim))
                progress = Progress(folder, checkpoint_steps=every, checkpoint_seconds=1e9)
                assert_same(run(config, progress, reference=reference), whole)
    assert {(every, place, 1) for every in (1, 2) for place in ("sampling", "step")} <= killed


CHILD = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.posttraining.test_reinforce import *
def slow(bandit):
    def roll(chosen, seeds):
        time.sleep(0.1)
        return bandit.roll(chosen, seeds)
    return roll
config = GrpoConfig(steps=8, lag=1, minibatches=2, **SMALL)
history, model = run(config, Progress(Path({progress!r}), checkpoint_steps=1), slow)
torch.save([history, model.state_dict()], {result!r})
"""


@pytest.mark.slow
def test_a_process_killed_with_signal_9_amid_rl_ends_bitwise_the_same(tmp_path):
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    result, progress = tmp_path / "result.pt", tmp_path / "progress"
    code = CHILD.format(root=root, progress=str(progress), result=str(result))
    kills = 0
    while not result.exists():
        child = subprocess.Popen([sys.executable, "-c", code])
        while child.poll() is None:
            found = complete(progress)
            if kills < 2 and found and steps_of(found[-1]) > 4 * (kills + 1):
                child.send_signal(signal.SIGKILL)
                kills += child.wait() == -signal.SIGKILL
            time.sleep(0.01)
        assert child.returncode in (0, -signal.SIGKILL)
    assert kills == 2
    history, state = torch.load(result)
    whole = run(GrpoConfig(steps=8, lag=1, minibatches=2, **SMALL))
    assert history == whole[0]
    assert all(torch.equal(tensor, state[name]) for name, tensor in whole[1].state_dict().items())


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_step_s_trains_on_what_the_policy_of_step_s_minus_lag_sampled(lag):
    """Told by the weights at each sampling and after each step; nothing is sampled twice."""
    sampled, after = [], []
    model = Transformer(TINY)
    after.append(checksum(model.parameters()))

    def watched(bandit):
        def roll(chosen, seeds):
            sampled.append(checksum(model.parameters()))
            return bandit.roll(chosen, seeds)

        return roll

    def told(step, steps, metrics):
        after.append(checksum(model.parameters()))

    config = GrpoConfig(steps=6, lag=lag, **SMALL)
    history, _ = run(config, Progress(on_step=told), watched, model=model)
    assert len(set(after)) == 7  # every step moved the weights
    assert sampled == [after[max(0, step - lag)] for step in range(6)]
    if lag:
        assert [row["policy_lag"] for row in history] == [min(step, lag) for step in range(6)]
        assert history[-1]["drift_kl"] > 1e-6 and history[-1]["effective_samples"] < 1
    else:
        assert all(row["drift_kl"] < 1e-6 for row in history)


def test_the_policy_that_is_trained_is_the_one_that_is_sampled_at_any_temperature():
    """The sampler's recorded log-probabilities are at its temperature; so are the trainer's."""

    def hot(bandit):
        def roll(chosen, seeds):
            asked = [
                Request([1, int(task.answer)], SamplingParams(max_tokens=3, seed=seed, temperature=0.5))
                for task, seed in zip(chosen, seeds, strict=True)
            ]
            return [
                trace(call(request.prompt_ids, found.token_ids, found.logprobs))
                for request, found in zip(asked, bandit.engine.generate(asked), strict=True)
            ]

        return roll

    model = Transformer(TINY)
    with torch.no_grad():
        model.embedding.weight.mul_(8)
    history, _ = run(GrpoConfig(steps=2, temperature=0.5, **SMALL), roll=hot, model=model)
    assert all(row["drift_kl_max"] < 1e-5 for row in history)
    history, _ = run(GrpoConfig(steps=1, temperature=1.0, **SMALL), roll=hot, model=model)
    assert history[0]["drift_kl_max"] > 1e-3


def test_sampling_ahead_asks_the_same_prompts_with_the_same_seeds():
    def asked(lag):
        model = Transformer(TINY)
        bandit = Bandit(model)
        improve(model, tasks(8), bandit.roll, bandit.grade, GrpoConfig(steps=5, lag=lag, **SMALL), 0, 7)
        return bandit.seeds

    assert asked(0) == asked(1) == asked(3)


def test_the_first_step_on_a_batch_has_ratio_one_and_later_ones_move():
    history, _ = run(GrpoConfig(steps=3, minibatches=2, epochs=2, **SMALL))
    assert len(history) == 12
    for first in range(0, 12, 4):
        assert history[first]["update_kl"] == 0 and history[first]["clip_fraction"] == 0
        assert all(row["update_kl"] > 0 for row in history[first + 1 : first + 4])
        assert len({row["reward"] for row in history[first : first + 4]}) == 1


def test_one_epoch_of_minibatches_trains_on_every_token_once():
    weights = []
    config = GrpoConfig(steps=1, minibatches=3, prompts=4, group=4)
    run(config, Progress(on_step=lambda step, steps, row: weights.append(row)))
    model = Transformer(TINY)
    bandit = Bandit(model)
    whole = improve(model, tasks(8), bandit.roll, half, GrpoConfig(steps=1, prompts=4, group=4), 0, 7)
    assert len(weights) == 3 and whole[0]["tokens"] == sum(row["tokens"] for row in weights)


def test_groups_without_variance_are_replaced_by_further_prompts():
    """Every task of an odd number always fails: with refills a step still has its fill of groups that teach."""

    def hard(chosen, traces):
        scores = Bandit.grade(chosen, traces)
        return [graded(0.0) if int(task.answer) % 2 else score for task, score in zip(chosen, scores, strict=True)]

    def kept(refill):
        model = Transformer(TINY)
        bandit = Bandit(model)
        config = GrpoConfig(steps=4, prompts=2, group=24, refill=refill, learning_rate=1e-4)
        return improve(model, tasks(8), bandit.roll, hard, config, 0, 3)

    without, filled = kept(0), kept(3)
    assert statistics.fmean(row["tokens"] for row in filled) > statistics.fmean(row["tokens"] for row in without)
    assert all(row["groups_kept"] <= 2 <= row["groups_sampled"] <= 8 for row in filled)
    assert all(row["groups_kept"] == 2 or row["groups_sampled"] == 8 for row in filled)


def test_refills_are_a_function_of_seed_and_step_and_repeat_no_prompt():
    config = GrpoConfig(steps=9, prompts=3, refill=5)
    for number in range(6):
        rounds = prompt_rounds(tasks(10), config, number, seed=1)
        drawn = [task.id for chosen in rounds for task in chosen]
        assert len(drawn) == len(set(drawn)) == 10 and len(rounds) == 4
        assert rounds == prompt_rounds(tasks(10), config, number, seed=1)
    assert prompt_rounds(tasks(10), config, 0, 1) != prompt_rounds(tasks(10), config, 0, 2)


def test_truncated_replies_teach_nothing_where_they_are_masked():
    """All replies are right or wrong, and all of them cut off: masked, the model stays bitwise as it was."""

    def cut(bandit):
        def roll(chosen, seeds):
            return [trace(node.nodes[-1].call, outcome="truncated") for node in bandit.roll(chosen, seeds)]

        return roll

    before = Transformer(TINY).state_dict()
    masked = run(GrpoConfig(steps=2, overlong="mask", **SMALL), roll=cut)[1].state_dict()
    kept = run(GrpoConfig(steps=2, **SMALL), roll=cut)[1].state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in masked.items())
    assert not all(torch.equal(tensor, before[name]) for name, tensor in kept.items())


@pytest.mark.parametrize("form", ["k1", "k2", "k3"])
def test_a_kl_in_the_reward_is_taken_off_before_the_group_is_compared(form):
    """By hand: the sum over a trace's sampled tokens of the estimate from the sampler's and the reference's numbers."""
    reference = Transformer(TINY, seed=4)
    traces = [trace(call([1, 4], [7, 2], [-0.5, -1.0])), trace(call([1, 4], [9, 8, 2], [-2.0, -0.1, -3.0]))]
    config = GrpoConfig(steps=1, group=2, reference_kl=0.3, kl_in="reward", kl_form=form)
    rewards = []
    for value, item in zip([1.0, 0.5], traces, strict=True):
        sampled = item.nodes[-1].call
        scored = score(reference, [[*sampled.prompt_ids, *sampled.token_ids]])[0][1:]
        for mine, theirs in zip(sampled.logprobs, scored, strict=True):
            d = theirs - mine
            value -= 0.3 * {"k1": -d, "k2": d * d / 2, "k3": math.exp(d) - d - 1}[form]
        rewards.append(value)
    rollouts = Rollouts(tuple(traces), (graded(1.0), graded(0.5)), 0, {})
    batch = group_batch(Transformer(TINY), rollouts, config, 0, reference)
    found = sorted({round(value, 4) for value in batch.advantage[batch.w_rl != 0].tolist()})
    assert found == pytest.approx(sorted(group_advantages(rewards)), abs=1e-3)


def test_a_kl_without_a_reference_is_refused_before_anything_is_sampled():
    def never(bandit):
        return lambda chosen, seeds: pytest.fail("sampled")

    with pytest.raises(ValueError, match="frozen copy"):
        run(GrpoConfig(steps=1, reference_kl=0.1, **SMALL), roll=never)


def test_the_warm_up_of_a_critic_leaves_the_policy_bitwise_alone_and_takes_the_critic_off_again():
    config = PpoConfig(steps=3, critic_warmup=2, **SMALL)
    after = []
    model = Transformer(TINY)
    started = checksum(model.parameters())

    def told(step, steps, metrics):
        policy = [value for name, value in model.named_parameters() if not name.startswith("critic.")]
        after.append(checksum(policy))

    history, _ = run(config, Progress(on_step=told), model=model)
    assert after[0] == after[1] == started != after[2]
    assert "loss_rl" not in history[1] and history[2]["loss_rl"] is not None
    assert all("loss_value" in row for row in history) and critic_of(model) is None
    assert model.state_dict().keys() == Transformer(TINY).state_dict().keys()


@pytest.mark.slow
def test_ppo_learns_a_bandit():
    config = PpoConfig(steps=60, prompts=4, group=16, learning_rate=0.02, critic_warmup=2)
    model = Transformer(TINY)
    bandit = Bandit(model)
    history = improve_with_critic(model, tasks(4), bandit.roll, bandit.grade, config, 0, 0)
    assert history[0]["reward"] < 0.3 and statistics.fmean(row["reward"] for row in history[-5:]) > 0.8


def test_a_failed_grading_takes_no_part_in_ppo():
    def failing(chosen, traces):
        return [FAILED for _ in chosen]

    model = Transformer(TINY)
    before = checksum(model.parameters())
    history = improve_with_critic(model, tasks(4), Bandit(model).roll, failing, PpoConfig(steps=2, **SMALL), 0, 0)
    assert checksum(model.parameters()) == before and history[0]["grading_failed"] == 1.0


def test_rollouts_come_back_from_disk_bit_for_bit(tmp_path):
    kept = Rollouts(
        (trace(call([1, 4], [7, 2], [-0.1 / 3, -1e-17])), trace(outcome="truncated")),
        (graded(1 / 3), FAILED),
        5,
        {"reward": 0.1 + 0.2},
    )
    write_rollouts(tmp_path / "kept", kept)
    assert read_rollouts(tmp_path / "kept") == kept


def test_a_run_that_goes_back_makes_anew_what_was_made_since_and_nothing_else(tmp_path):
    """The guard rolls back to step 2 and leaves steps 3 and 4 out; what was made at 0 and 1 stays."""

    def write(path, value):
        path.write_text(value)

    kept = Kept(tmp_path, write, lambda path: path.read_text())
    for step in range(4):
        kept.arrive(step)
        kept.find(step + 1, step, lambda step=step: f"first {step}")
    kept.arrive(2)
    assert kept.find(2, 2, lambda: "again") == "first 1" and kept.find(3, 2, lambda: "again") == "again"
    kept.arrive(5)
    assert kept.find(3, 5, lambda: "late") == "again" and kept.find(6, 5, lambda: "late") == "late"
    (tmp_path / "0000009-made-at-0000009.new").write_text("cut off")
    resumed = Kept(tmp_path, write, lambda path: path.read_text())
    resumed.arrive(5)
    assert resumed.find(3, 5, lambda: "resumed") == "again" and resumed.find(6, 5, lambda: "resumed") == "resumed"
    assert not list(tmp_path.glob("*.new"))


def test_what_was_sampled_for_steps_that_no_checkpoint_can_ask_for_is_deleted(tmp_path):
    run(GrpoConfig(steps=12, lag=1, **SMALL), Progress(tmp_path, checkpoint_steps=1, checkpoint_seconds=1e9))
    oldest = steps_of(complete(tmp_path)[0])
    left = sorted(int(path.name.split("-")[0]) for path in (tmp_path / "rollouts").iterdir())
    assert left[0] <= oldest < 12 and len(left) < 6
