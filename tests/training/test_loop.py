"""The loop's promises: exact resume, refusals, and steps that are left out whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from noria.model import ModelConfig, MoE, Transformer
from noria.training import Annotated, LoopConfig, Progress, TokenBatch, train
from noria.training.checkpoint import complete, steps_of
from noria.training.loop import optimiser_step
from noria.training.objectives import Objective
from noria.training.optim import MuonAdamW

TINY = ModelConfig(vocab_size=32, width=16, layers=1, heads=2, kv_heads=1, ffn_width=32, context=8)
CONFIG = LoopConfig(steps=8, learning_rate=0.02, warmup_steps=2)


class Killed(BaseException):
    pass


def annotated(step):
    tokens = torch.randint(0, 32, (3, 9), generator=torch.Generator().manual_seed(step))
    return Annotated(TokenBatch(tokens, torch.ones(3, 8)), {"drawn": np.float64(step)})


def poisoned(step):
    """A batch whose loss is not a number: an advantage that is not."""
    batch = annotated(step).batch
    rl = {"w_rl": torch.ones(3, 8), "behaviour_logprob": torch.zeros(3, 8), "advantage": torch.full((3, 8), torch.nan)}
    return Annotated(replace(batch, **rl))


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_bitwise(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


@pytest.fixture(scope="module")
def undisturbed():
    model = Transformer(TINY)
    return train(model, annotated, CONFIG), weights(model)


@pytest.mark.parametrize(
    "last", [last if last == 3 else pytest.param(last, marks=pytest.mark.slow) for last in range(CONFIG.steps)]
)
def test_a_run_interrupted_at_any_step_and_resumed_is_bitwise_the_same(tmp_path, undisturbed, last):
    def until(step):
        if step > last:
            raise Killed
        return annotated(step)

    progress = Progress(tmp_path, checkpoint_steps=1)
    if last < CONFIG.steps - 1:
        with pytest.raises(Killed):
            train(Transformer(TINY), until, CONFIG, progress)
    else:
        train(Transformer(TINY), annotated, CONFIG, progress)
    seen = []

    def counting(step):
        seen.append(step)
        return annotated(step)

    resumed = Transformer(TINY, seed=99)  # the checkpoint's weights replace whatever is there
    history = train(resumed, counting, CONFIG, progress)
    assert seen == list(range(last + 1, CONFIG.steps))
    assert history == undisturbed[0]
    assert_bitwise(weights(resumed), undisturbed[1])


CHILD = """
import sys, time
from pathlib import Path
sys.path.insert(0, {folder!r})
from test_loop import *
def slow(step):
    time.sleep(0.1)
    return annotated(step)
model = Transformer(TINY)
config = CONFIG.model_copy(update={{"steps": 12}})
history = train(model, slow, config, Progress(Path({progress!r}), checkpoint_steps=1))
torch.save([history, model.state_dict()], {result!r})
"""


@pytest.mark.slow
def test_a_process_killed_with_signal_9_and_started_again_ends_bitwise_the_same(tmp_path):
    result = tmp_path / "result.pt"
    code = CHILD.format(
        folder=os.path.dirname(os.path.abspath(__file__)), progress=str(tmp_path / "progress"), result=str(result)
    )
    kills = 0
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-c", code])
        while child.poll() is None:
            found = complete(tmp_path / "progress")
            if not kills and found and steps_of(found[-1]) > 3:
                child.send_signal(signal.SIGKILL)
                kills += child.wait() == -signal.SIGKILL
            time.sleep(0.01)
        if child.returncode == 0:
            break
    assert kills == 1 and result.exists()
    history, state = torch.load(result)
    model = Transformer(TINY)
    assert history == train(model, annotated, CONFIG.model_copy(update={"steps": 12}))
    assert_bitwise(weights(model), state)


@pytest.mark.parametrize("micro_batch_rows", [1, 64])
def test_a_batch_that_is_not_finite_leaves_weights_and_moments_untouched(micro_batch_rows):
    config = CONFIG.model_copy(update={"micro_batch_rows": micro_batch_rows})
    model = Transformer(TINY)
    optimizer = MuonAdamW(model, 0.02)

    def step(batch):
        return optimiser_step(model, optimizer, batch, config, 0.02, Objective())

    step(annotated(0).batch)
    before = weights(model)
    moments = [{k: v.clone() if torch.is_tensor(v) else v for k, v in s.items()} for s in optimizer.state.values()]
    assert step(poisoned(1).batch)["skipped"] == 1.0
    assert_bitwise(weights(model), before)
    for kept, now in zip(moments, optimizer.state.values(), strict=True):
        assert all(torch.equal(torch.as_tensor(kept[k]), torch.as_tensor(now[k])) for k in kept)
    assert step(annotated(2).batch)["skipped"] == 0.0  # and nothing of it is left in the next gradient
    assert all(torch.isfinite(tensor).all() for tensor in weights(model).values())


def test_a_skipped_step_is_counted_and_leaves_no_trace():
    def one_bad(step):
        return poisoned(step) if step == 3 else annotated(step)

    def one_empty(step):
        batch = annotated(step).batch
        return Annotated(replace(batch, w_ce=torch.zeros(3, 8)) if step == 3 else batch)

    bad, empty = Transformer(TINY), Transformer(TINY)
    history = train(bad, one_bad, CONFIG)
    train(empty, one_empty, CONFIG)
    assert [entry["skipped"] for entry in history] == [0, 0, 0, 1, 0, 0, 0, 0]
    assert_bitwise(weights(bad), weights(empty))


def test_three_bad_steps_in_a_row_raise_and_two_do_not():
    def bad(*steps):
        return lambda step: poisoned(step) if step in steps else annotated(step)

    assert sum(entry["skipped"] for entry in train(Transformer(TINY), bad(1, 2, 4, 5), CONFIG)) == 4
    with pytest.raises(FloatingPointError, match=r"3 steps in a row \(steps 3 to 5\); lower the learning rate"):
        train(Transformer(TINY), bad(2, 3, 4), CONFIG)


def test_the_gradient_is_clipped_to_its_largest_norm():
    """AdamW's first moments after one step are (1 - beta) times the gradient that it was given."""
    model = Transformer(TINY)
    optimizer = MuonAdamW(model, 0.02, muon=False)
    config = CONFIG.model_copy(update={"max_gradient_norm": 0.01})
    metrics = optimiser_step(model, optimizer, annotated(0).batch, config, 0.02, Objective())
    seen = torch.stack([state["first"].norm() / 0.1 for state in optimizer.state.values()]).norm().item()
    assert metrics["gradient_norm"] > 0.1 and seen == pytest.approx(0.01, rel=1e-3)


def test_training_learns_and_reports_every_step():
    told = []
    data = annotated(0)
    config = CONFIG.model_copy(update={"steps": 30})
    model = Transformer(TINY)
    history = train(model, lambda step: data, config, Progress(on_step=lambda *told_now: told.append(told_now)))
    assert history[-1]["loss_ce"] < 0.5 * history[0]["loss_ce"] and not model.training
    assert [(step, steps) for step, steps, _ in told] == [(step, 30) for step in range(30)]
    assert all(type(value) is float for entry in history for value in entry.values())


def test_routers_are_balanced_once_a_step_and_not_by_a_rejected_batch(tmp_path):
    experts = TINY.model_copy(update={"moe": MoE(experts=4, chosen=2, expert_width=16)})
    model = Transformer(experts)
    history = train(model, annotated, CONFIG, Progress(tmp_path))
    biases = model.blocks[0].moe.bias
    assert all(row["expert_excess"] >= 0 for row in history) and biases.abs().max() > 0
    assert biases.abs().max() <= 2 * CONFIG.expert_bias_rate * CONFIG.steps and abs(float(biases.sum())) < 1e-6
    assert model.blocks[0].moe.load.sum() == 0
    still = Transformer(experts)
    train(still, lambda step: poisoned(step) if step == 0 else annotated(step), CONFIG.model_copy(update={"steps": 1}))
    assert still.blocks[0].moe.bias.abs().max() == 0 and still.blocks[0].moe.load.sum() == 0
