"""Losses over pairs against twins in plain Python, and that pairs survive micro-batches, packing and chunked logits."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from noria.posttraining.preference import Judged, Pair, judged_batch, pair_batch
from noria.posttraining.reward_model import scored_batch
from noria.posttraining.sft import Example
from noria.training import LoopConfig, Objective, PreferenceLoss
from noria.training import step as step_module
from noria.training.critic import attach_critic
from noria.training.loop import optimiser_step
from noria.training.optim import MuonAdamW
from noria.training.preferences import kto_losses, preference_losses, reward_model_losses
from noria.training.step import target_logprobs, weighted_tokens
from tests.training.test_objectives import tiny

DELTAS = [-3.0, -0.2, 0.0, 0.7, 12.0]


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


TWINS = {
    "dpo": (PreferenceLoss(beta=0.3), lambda d: -math.log(sigmoid(0.3 * d))),
    "cdpo": (
        PreferenceLoss(beta=0.3, label_smoothing=0.1),
        lambda d: -0.9 * math.log(sigmoid(0.3 * d)) - 0.1 * math.log(sigmoid(-0.3 * d)),
    ),
    "ipo": (PreferenceLoss(form="ipo", beta=0.3), lambda d: (d - 1 / 0.6) ** 2),
    "simpo": (PreferenceLoss(form="simpo", beta=2.0, margin=0.5), lambda d: -math.log(sigmoid(2 * d - 0.5))),
}


@pytest.mark.parametrize("name", TWINS)
def test_each_loss_is_its_twin_in_value_and_by_finite_differences(name):
    loss, twin = TWINS[name]
    deltas = torch.tensor(DELTAS, dtype=torch.float64, requires_grad=True)
    found = preference_losses(deltas, loss)
    assert found.tolist() == pytest.approx([twin(d) for d in DELTAS])
    (slopes,) = torch.autograd.grad(found.sum(), deltas)
    assert slopes.tolist() == pytest.approx(
        [(twin(d + 1e-5) - twin(d - 1e-5)) / 2e-5 for d in DELTAS], rel=1e-4, abs=1e-8
    )


def test_kto_is_its_twin_for_good_and_bad_replies():
    loss = PreferenceLoss(form="kto", beta=0.5, undesirable_weight=1.5)
    ratios, good, z = [1.0, -2.0, 0.5, 3.0], [True, True, False, False], 0.4
    signed = torch.tensor([r if g else -r for r, g in zip(ratios, good, strict=True)], dtype=torch.float64)
    found = kto_losses(signed, torch.tensor(good), torch.full((4,), z, dtype=torch.float64), loss)
    twin = [
        1 - sigmoid(0.5 * (r - z)) if g else 1.5 * (1 - sigmoid(0.5 * (z - r)))
        for r, g in zip(ratios, good, strict=True)
    ]
    assert found.tolist() == pytest.approx(twin)


def test_the_reward_model_loss_is_its_twin_and_centring_pulls_to_zero():
    chosen, rejected = torch.tensor([2.0, -1.0], dtype=torch.float64), torch.tensor([1.5, 0.0], dtype=torch.float64)
    found = reward_model_losses(chosen, rejected, PreferenceLoss(margin=0.2, centring=0.1))
    twin = [-math.log(sigmoid(0.5 - 0.2)) + 0.1 * 3.5**2, -math.log(sigmoid(-1.0 - 0.2)) + 0.1]
    assert found.tolist() == pytest.approx(twin)


def examples(seed, count=5):
    g = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return torch.randint(3, 32, (int(torch.randint(low, high, (), generator=g)),), generator=g).tolist()

    found = []
    for _ in range(count):
        prompt = draw(1, 4)
        sides = []
        for reply in (draw(1, 5), draw(1, 5)):
            sides.append(Example((*prompt, *reply), (False,) * len(prompt) + (True,) * len(reply)))
        found.append(Pair(*sides))
    return found


PAIRS = examples(0)


def pairs_with_reference(**settings):
    batch = pair_batch(PAIRS, 0, **settings)
    return dataclasses.replace(batch, reference_logprob=target_logprobs(tiny(seed=4), batch))


def logprob(model, item):
    with torch.no_grad():
        logprobs = model(torch.tensor([item.token_ids[:-1]])).log_softmax(-1)[0]
    return sum(
        logprobs[t, token].item()
        for t, (token, on) in enumerate(zip(item.token_ids[1:], item.trained[1:], strict=True))
        if on
    )


def stepped(batch, preference, rows=64, scored=False):
    model = tiny()
    if scored:
        with torch.no_grad():
            attach_critic(model, own_trunk=False).head.weight.normal_(generator=torch.Generator().manual_seed(0))
    config = LoopConfig(steps=1, learning_rate=1, micro_batch_rows=rows, max_gradient_norm=1e9)
    metrics = optimiser_step(model, MuonAdamW(model, 0.0), batch, config, 0.0, Objective(preference=preference))
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([grad.flatten() for grad in found]), metrics


def test_a_row_of_two_segments_gives_the_margin_of_the_replies_alone():
    """From whole sequences scored one by one; and both log-probabilities are always told."""
    model, reference = tiny(), tiny(seed=4)
    batch = pairs_with_reference()
    _, metrics = stepped(batch, PreferenceLoss(beta=0.3))
    chosen = [logprob(model, pair.chosen) for pair in PAIRS]
    rejected = [logprob(model, pair.rejected) for pair in PAIRS]
    margins = [
        c - logprob(reference, pair.chosen) - (r - logprob(reference, pair.rejected))
        for c, r, pair in zip(chosen, rejected, PAIRS, strict=True)
    ]
    assert metrics["loss_pair"] == pytest.approx(sum(-math.log(sigmoid(0.3 * d)) for d in margins) / 5, rel=1e-4)
    assert metrics["chosen_logprob"] == pytest.approx(sum(chosen) / 5, rel=1e-4)
    assert metrics["rejected_logprob"] == pytest.approx(sum(rejected) / 5, rel=1e-4)
    assert metrics["preference_accuracy"] == sum(d > 0 for d in margins) / 5
    assert metrics["chosen_reward"] - metrics["rejected_reward"] == pytest.approx(0.3 * sum(margins) / 5, rel=1e-3)


@pytest.mark.parametrize("name", TWINS)
def test_pairs_do_not_depend_on_micro_batches_nor_on_chunks(name, monkeypatch):
    batch = pairs_with_reference(normalise=name == "simpo", chosen_ce=0.2)
    whole, metrics = stepped(batch, TWINS[name][0])
    assert whole.norm() > 0.01 and {"loss_pair", "loss_ce"} <= metrics.keys()
    for rows, vocabulary in ((1, 10**9), (2, 0), (64, 0)):
        monkeypatch.setattr(step_module, "WHOLE_LOGITS_VOCABULARY", vocabulary)
        cut, cut_metrics = stepped(batch, TWINS[name][0], rows)
        assert (whole - cut).norm() < 1e-5 * whole.norm()
        assert metrics == pytest.approx(cut_metrics, rel=1e-4, abs=1e-5)


def test_a_model_that_is_its_own_reference_has_margin_zero_and_the_gradient_of_the_margin():
    batch = pair_batch(PAIRS, 0)
    batch = dataclasses.replace(batch, reference_logprob=target_logprobs(tiny(), batch))
    gradient, metrics = stepped(batch, PreferenceLoss(beta=0.2))
    assert metrics["loss_pair"] == pytest.approx(math.log(2), rel=1e-5)
    model = tiny()
    total = torch.zeros(())
    for pair in PAIRS:
        for item, sign in ((pair.chosen, 1), (pair.rejected, -1)):
            logprobs = model(torch.tensor([item.token_ids[:-1]])).log_softmax(-1)[0]
            for t, on in enumerate(item.trained[1:]):
                total = total + sign * on * logprobs[t, item.token_ids[t + 1]]
    (-0.2 * 0.5 * total / 5).backward()  # slope of -log sigmoid(beta d) at 0
    expected = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert (gradient - expected).norm() < 1e-4 * expected.norm()


def test_lengths_are_normalised_to_means_over_the_replys_tokens():
    batch = pair_batch(PAIRS, 0, normalise=True)
    for segment, sign in ((0, 1), (1, -1)):
        mine = batch.segment_BT[:, 1:] == segment
        assert torch.where(mine, batch.w_pair, 0).sum(1).tolist() == pytest.approx([sign] * 5)


def test_kto_rows_do_not_depend_on_micro_batches():
    judged = [Judged(pair.chosen, index % 2 == 0) for index, pair in enumerate(PAIRS)]
    batch = judged_batch(judged, 0)
    batch = dataclasses.replace(
        batch, reference_logprob=target_logprobs(tiny(seed=4), batch), reference_point=torch.full((5, 1), 0.3)
    )
    preference = PreferenceLoss(form="kto", beta=0.5)
    whole, metrics = stepped(batch, preference)
    cut, cut_metrics = stepped(batch, preference, 2)
    assert (whole - cut).norm() < 1e-5 * whole.norm() and metrics == pytest.approx(cut_metrics, rel=1e-4)
    model, reference = tiny(), tiny(seed=4)
    ratios = [logprob(model, item.item) - logprob(reference, item.item) for item in judged]
    twin = [
        1 - sigmoid(0.5 * ((r - 0.3) if entry.good else (0.3 - r))) for r, entry in zip(ratios, judged, strict=True)
    ]
    assert metrics["loss_pair"] == pytest.approx(sum(twin) / 5, rel=1e-4)
    assert metrics["preference_accuracy"] == sum((r > 0) == e.good for r, e in zip(ratios, judged, strict=True)) / 5


def test_a_reply_is_scored_from_the_state_that_has_read_all_of_it():
    rows = [(pair.chosen, pair.rejected) for pair in PAIRS]
    batch = scored_batch(rows, 0)
    preference = PreferenceLoss(centring=0.05)
    whole, metrics = stepped(batch, preference, scored=True)
    cut, cut_metrics = stepped(batch, preference, 2, scored=True)
    assert (whole - cut).norm() < 1e-5 * whole.norm() and metrics == pytest.approx(cut_metrics, rel=1e-4)
    model = tiny()
    head = torch.empty(1, 16).normal_(generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores = [
            [(model.hidden(torch.tensor([item.token_ids]))[0, -1] @ head[0]).item() for item in row] for row in rows
        ]
    twin = [-math.log(sigmoid(c - r)) + 0.05 * (c + r) ** 2 for c, r in scores]
    assert metrics["loss_score"] == pytest.approx(sum(twin) / 5, rel=1e-4)
    assert metrics["chosen_score"] == pytest.approx(sum(c for c, _ in scores) / 5, rel=1e-4)
    assert weighted_tokens(batch) == {"score": 5.0}
