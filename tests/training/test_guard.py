"""The guard: each injected fault is seen, blamed on the right cause and got over; clean runs raise no alarm."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from test_loop import assert_bitwise, poisoned, weights

from noria.model import ModelConfig, Transformer
from noria.training import Annotated, GuardConfig, LoopConfig, Progress, TokenBatch, WorkerFault, train
from noria.training.guard import judge, odd_ones_out, range_to_leave_out, rejected_in_a_row, stragglers

TINY = ModelConfig(vocab_size=32, width=16, layers=1, heads=2, kv_heads=1, ffn_width=32, context=8)
GUARD = GuardConfig(
    spikes=True, make_up=True, least_steps=8, anchor_steps=20, lead_steps=2, skip_steps=14, replay_steps=0
)
CONFIG = LoopConfig(steps=240, learning_rate=0.02, warmup_steps=5, guard=GUARD)


def annotated(step):
    """Arithmetic progressions modulo 32: learnable, and different at every step."""
    generator = torch.Generator().manual_seed(step)
    start, stride = torch.randint(0, 32, (2, 8, 1), generator=generator)
    return Annotated(TokenBatch((start + torch.arange(9) * (1 + stride % 3)) % 32, torch.ones(8, 8)))


def garbage(step):
    """A batch that is finite and wrong: one token that never follows, with a weight of a thousand."""
    batch = annotated(step).batch
    return Annotated(replace(batch, tokens_BT=torch.full_like(batch.tokens_BT, 31), w_ce=torch.full((8, 8), 1000.0)))


def flip_bit(tensor, bit=30, place=0):
    """Flip one bit of one number, in place; bit 30 is the highest of the exponent."""
    tensor.detach().view(torch.int32).view(-1)[place] ^= 1 << bit


def run(disturb=None, folder=None, config=CONFIG, seed=0, prepare=None, **progress):
    """(weights, history, events); `disturb(model)` gives other batches, `prepare(model)` changes what it computes."""
    events, model = [], Transformer(TINY, seed=seed)
    if prepare:
        prepare(model)
    history = train(
        model,
        disturb(model) if disturb else annotated,
        config,
        Progress(folder, on_event=events.append, **progress),
    )
    return weights(model), history, events


@pytest.fixture(scope="module")
def undisturbed():
    found = run()
    assert not found[2] and found[1][-1]["loss_ce"] < 1.0
    return found


def last_loss(history):
    """The mean loss of the last ten steps."""
    return sum(row["loss_ce"] for row in history[-10:]) / 10


@pytest.fixture(scope="module")
def noise():
    """The largest difference between the last losses of clean runs with other seeds of the weights."""
    losses = [last_loss(run(seed=seed)[1]) for seed in (1, 2, 3)]
    return max(losses) - min(losses)


def test_an_outlier_is_judged_by_accepted_steps_only():
    calm = [(2.0 + 0.05 * math.sin(step), 1.0 + 0.1 * math.cos(step)) for step in range(60)]
    assert judge(calm, 2.1, 1.1, GUARD)[0] == "accept"
    assert judge(calm, 4.0, 1.1, GUARD)[0] == judge(calm, 2.0, 50.0, GUARD)[0] == "spike"
    assert judge(calm, 0.1, 0.01, GUARD)[0] == "accept"  # an easy batch
    assert judge(calm[:7], 4.0, 50.0, GUARD)[0] == "accept"  # too few to judge by
    assert judge(calm, 4.0, 1.1, GuardConfig())[0] == "outlier"


@pytest.mark.parametrize("loss, norm", [(math.nan, 1.0), (1.0, math.inf), (-math.inf, 1.0), (1.0, math.nan)])
def test_what_is_not_finite_is_rejected_from_the_first_step_on(loss, norm):
    assert judge([], loss, norm, GuardConfig())[0] == "not finite"


def test_the_odd_one_out_is_found_by_majority():
    assert odd_ones_out([5, 5, 5]) == ()
    assert odd_ones_out([5, 6, 5]) == (1,)
    assert odd_ones_out([5, 6]) == (0, 1) == odd_ones_out([5, 5, 6, 6])[:2]


def test_a_straggler_is_slow_in_the_median_and_not_once():
    steady = [[1.0, 1.1, 0.9]] * 10
    assert stragglers([*steady, [1.0, 9.0, 1.0]]) == {}
    assert list(stragglers([[1.0, 2.0, 0.9]] * 6)) == [1]
    assert stragglers([[1.0]] * 5) == {}


def test_steps_left_out_lie_around_the_first_rejected_one_and_never_before_the_anchor():
    assert range_to_leave_out(45, 40, GUARD) == (43, 59)
    assert range_to_leave_out(41, 40, GUARD) == (40, 55)
    rows = [{"skipped": 0.0}, {"skipped": 1.0}, {"skipped": 1.0}]
    assert rejected_in_a_row(rows) == 2 and rejected_in_a_row([*rows, {"skipped": 1.0, "left_out": 1.0}]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("bit", [0, 30])
@pytest.mark.parametrize("where", ["weight", "moment"])
def test_a_bit_flipped_in_memory_is_seen_blamed_on_hardware_and_undone(tmp_path, undisturbed, bit, where, monkeypatch):
    """The lowest bit changes no loss that anyone would notice; the run still ends in the undisturbed bits."""
    from noria.training import loop

    optimizers = []

    class Kept(loop.MuonAdamW):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            optimizers.append(self)

    monkeypatch.setattr(loop, "MuonAdamW", Kept)
    flips = []

    def flipping(model):
        def annotate(step):
            if step == 47 and not flips:
                flips.append(step)
                parameter = model.blocks[0].up.weight
                flip_bit(parameter if where == "weight" else optimizers[0].state[parameter]["momentum"], bit)
            return annotated(step)

        return annotate

    state, history, events = run(flipping, tmp_path)
    assert [(event.kind, event.cause, event.step) for event in events] == [("hardware", "hardware", 47)]
    assert "changed in memory" in events[0].message and events[0].evidence["ranks"] == (0,)
    assert history == undisturbed[1]
    assert_bitwise(state, undisturbed[0])


def test_a_bit_flipped_in_memory_without_a_checkpoint_stops_the_run():
    def flipping(model):
        def annotate(step):
            if step == 5:
                flip_bit(model.embedding.weight)
            return annotated(step)

        return annotate

    with pytest.raises(WorkerFault, match=r"rank 0 changed in memory during step 5, and there is no checkpoint"):
        run(flipping)


def flips_gradient(model, times, at_step=40, bit=30):
    """Flip a bit of one gradient while it is computed, in the first `times` computations of a step."""
    count = {"passes": 0}

    def hook(gradient):
        count["passes"] += 1
        if at_step < count["passes"] <= at_step + times:
            flip_bit(gradient, bit, place=count["passes"])
        return gradient

    model.blocks[0].up.weight.register_hook(hook)


@pytest.mark.slow
@pytest.mark.parametrize("spikes", [True, False])
def test_a_bit_flipped_in_a_gradient_is_outvoted_by_two_replays(undisturbed, spikes):
    config = CONFIG.model_copy(update={"guard": GUARD.model_copy(update={"spikes": spikes})})
    state, history, events = run(prepare=lambda model: flips_gradient(model, 1), config=config)
    assert [(event.kind, event.cause, event.step) for event in events] == [("hardware", "hardware", 40)]
    assert "two of three agree" in events[0].message
    assert history == undisturbed[1]
    assert_bitwise(state, undisturbed[0])


@pytest.mark.slow
def test_a_small_flip_in_a_gradient_is_seen_by_the_periodic_replay(undisturbed):
    config = CONFIG.model_copy(update={"guard": GUARD.model_copy(update={"replay_steps": 41})})
    state, _, events = run(prepare=lambda model: flips_gradient(model, 1, bit=3), config=config)
    assert [(event.kind, event.step) for event in events] == [("hardware", 40)]
    assert_bitwise(state, undisturbed[0])


def test_a_worker_that_never_computes_the_same_twice_is_taken_out_of_use():
    with pytest.raises(WorkerFault, match="three times over; take that worker out of use") as caught:
        run(prepare=lambda model: flips_gradient(model, 3))
    assert caught.value.step == 40 and caught.value.ranks == (0,)


@pytest.mark.slow
def test_a_batch_that_is_not_finite_is_blamed_on_data_and_left_out(undisturbed, noise):
    def one_bad(model):
        def annotate(step):
            if step != 40:
                return annotated(step)
            batch = annotated(step).batch
            return Annotated(replace(batch, w_ce=torch.full((8, 8), math.nan)))

        return annotate

    _, history, events = run(one_bad)
    assert [(event.kind, event.cause, event.step) for event in events] == [("skipped_update", "data or optimiser", 40)]
    assert events[0].evidence["replay"] == "same bits"
    assert [step for step, row in enumerate(history) if row["skipped"]] == [40]
    assert abs(last_loss(history) - last_loss(undisturbed[1])) < noise


def poisoned_range(model):
    return lambda step: garbage(step) if 45 <= step < 57 else annotated(step)


@pytest.mark.slow
def test_a_poisoned_range_of_data_is_left_out_after_going_back(tmp_path, undisturbed, noise):
    state, history, events = run(poisoned_range, tmp_path / "a")
    assert [event.kind for event in events] == ["skipped_update"] * 3 + ["rolled_back"]
    assert events[-1].evidence == {"anchor": 40, "left_out": [43, 59], "rejected": [45, 48]}
    assert [step for step, row in enumerate(history) if row.get("left_out")] == list(range(43, 59))
    # Made up for with the data after the last step: as many updates, at the same rates, as without the fault.
    rates = [row["learning_rate"] for row in history if not row["skipped"]]
    assert rates == [row["learning_rate"] for row in undisturbed[1]]
    assert abs(last_loss(history) - last_loss(undisturbed[1])) < noise
    again = run(poisoned_range, tmp_path / "b", checkpoint_seconds=0.0)  # clocks have no say in where it goes back to
    assert again[1] == history
    assert_bitwise(state, again[0])


@pytest.mark.slow
def test_a_run_killed_after_going_back_does_the_same_when_started_again(tmp_path):
    whole = run(poisoned_range, tmp_path / "whole")

    class Killed(BaseException):
        pass

    def killed(at):
        def disturb(model):
            def annotate(step):
                if len(seen) == at:
                    raise Killed
                seen.append(step)
                return poisoned_range(model)(step)

            return annotate

        seen = []
        return disturb

    for at in (47, 65):  # while rejecting, and past the range
        folder = tmp_path / str(at)
        with pytest.raises(Killed):
            run(killed(at), folder, checkpoint_steps=5)
        state, history, _ = run(poisoned_range, folder, checkpoint_steps=50, seed=9)
        assert history == whole[1]
        assert_bitwise(state, whole[0])


def test_data_that_is_bad_to_the_end_stops_the_run_after_a_few_attempts(tmp_path):
    def bad(model):
        return lambda step: garbage(step) if step >= 45 else annotated(step)

    config = CONFIG.model_copy(update={"guard": GUARD.model_copy(update={"rollbacks": 2})})
    with pytest.raises(FloatingPointError, match=r"3 steps in a row .* after going back 2 times; lower the learning"):
        run(bad, tmp_path, config)


@pytest.mark.slow
def test_rejected_steps_never_reach_the_moments(tmp_path):
    """A run whose bad step is left out equals one whose batch of that step had no weight."""

    def bad(model):
        return lambda step: poisoned_like(step) if step == 30 else annotated(step)

    def poisoned_like(step):
        return Annotated(replace(poisoned(step).batch, w_ce=torch.ones(3, 8)))

    def empty(model):
        return lambda step: (
            Annotated(replace(annotated(step).batch, w_ce=torch.zeros(8, 8))) if step == 30 else annotated(step)
        )

    assert_bitwise(run(bad)[0], run(empty)[0])


@pytest.mark.slow
@pytest.mark.parametrize("learning_rate", [0.005, 0.03])
def test_two_thousand_clean_steps_raise_no_alarm(tmp_path, learning_rate):
    guard = GuardConfig(spikes=True)
    config = LoopConfig(steps=2000, learning_rate=learning_rate, warmup_steps=20, guard=guard)
    _, history, events = run(folder=tmp_path, config=config)
    assert not events and not any(row["skipped"] for row in history)
