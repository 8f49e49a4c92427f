"""Every form of the policy loss against a twin in plain Python, and the invariants that all of them keep."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from noria.training import LoopConfig, Objective, PolicyLoss
from noria.training import step as step_module
from noria.training.critic import attach_critic
from noria.training.loop import optimiser_step
from noria.training.objectives import is_clipped, policy_gradient, reference_kl, value_loss
from noria.training.optim import MuonAdamW
from noria.training.step import loss_of, measure_gradient, target_logprobs, weighted_tokens
from tests.training.test_objectives import full_batch, tiny

ROOT = Path(__file__).parent.parent.parent
FORMS = {
    "ppo": PolicyLoss(),
    "dual clip": PolicyLoss(dual_clip=1.5),
    "band": PolicyLoss(importance="band"),
    "no correction": PolicyLoss(importance="none"),
    "gspo": PolicyLoss(form="gspo", clip_low=0.02, clip_high=0.03),
    "cispo": PolicyLoss(form="cispo", ratio_cap=1.2),
    "stale": PolicyLoss(stale_limit=0.05),
}
ROWS = [[0, 1, 2], [3, 4], [5], [6, 7, 8, 9]]
ROW = torch.tensor([row for row, members in enumerate(ROWS) for _ in members])


def numbers(seed=0):
    g = torch.Generator().manual_seed(seed)
    old = -torch.rand(10, generator=g, dtype=torch.float64) * 3
    new = old + 0.5 * torch.randn(10, generator=g, dtype=torch.float64)
    behaviour = old + 0.6 * torch.randn(10, generator=g, dtype=torch.float64)
    advantage = torch.randn(4, generator=g, dtype=torch.float64)[ROW]
    return new, old, behaviour, advantage, torch.rand(10, generator=g, dtype=torch.float64)


def twin(new, old, behaviour, advantage, weight, bounds, fixed):
    """The loss by loops over rows and tokens. `fixed` are the log-probabilities that stopgrad sees."""
    total = 0.0
    for members in ROWS:
        drift = sum(old[t] - fixed[t] for t in members) / len(members)
        for t in members:
            log_ratio, log_importance = new[t] - old[t], old[t] - behaviour[t]
            if bounds.form == "gspo":
                log_ratio = sum(new[s] - old[s] for s in members) / len(members)
                log_importance = sum(old[s] - behaviour[s] for s in members) / len(members)
            rho = math.exp(log_importance)
            if bounds.importance == "none":
                rho = 1.0
            elif bounds.importance == "truncate":
                rho = min(rho, bounds.importance_cap)
            elif not bounds.importance_low <= rho <= bounds.importance_cap:
                rho = 0.0
            if bounds.form == "cispo":
                value = min(math.exp(fixed[t] - old[t]), bounds.ratio_cap) * advantage[t] * new[t]
            else:
                ratio = math.exp(log_ratio)
                inside = min(max(ratio, 1 - bounds.clip_low), 1 + bounds.clip_high)
                value = min(ratio * advantage[t], inside * advantage[t])
                if bounds.dual_clip and advantage[t] < 0:
                    value = max(value, bounds.dual_clip * advantage[t])
            if bounds.stale_limit is not None and advantage[t] < 0 and drift > bounds.stale_limit:
                value = 0.0
            total -= weight[t] * rho * value
    return total


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("seed", range(4))
def test_each_form_is_its_twin_in_value_and_by_finite_differences(name, seed):
    new, old, behaviour, advantage, weight = numbers(seed)
    leaf = new.clone().requires_grad_()
    loss = policy_gradient(leaf, old, behaviour, advantage, weight, FORMS[name], ROW)
    loss.backward()
    plain = [value.tolist() for value in (old, behaviour, advantage, weight)]

    def at(values):
        return twin(values, *plain, FORMS[name], fixed=new.tolist())

    assert loss.item() == pytest.approx(at(new.tolist()), rel=1e-9, abs=1e-12)
    for t in range(10):
        up, down = new.tolist(), new.tolist()
        up[t] += 1e-6
        down[t] -= 1e-6
        assert leaf.grad[t].item() == pytest.approx((at(up) - at(down)) / 2e-6, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("name", FORMS)
def test_on_policy_every_form_has_the_gradient_of_minus_a_log_pi(name):
    """The ratio is exactly 1: no bound is reached, whatever the advantage."""
    _, old, _, advantage, _ = numbers()
    leaf = old.clone().requires_grad_()
    policy_gradient(leaf, leaf.detach(), old, advantage, torch.ones(10), FORMS[name], ROW).backward()
    torch.testing.assert_close(leaf.grad, -advantage, rtol=1e-12, atol=0)
    assert not is_clipped(old - old, advantage, FORMS[name], ROW).any()


def test_clipped_tokens_are_those_without_a_gradient():
    for name in ("ppo", "dual clip"):
        new, old, _, advantage, weight = numbers(3)
        leaf = new.clone().requires_grad_()
        policy_gradient(leaf, old, old, advantage, weight + 0.1, FORMS[name], ROW).backward()
        assert torch.equal(leaf.grad == 0, is_clipped(new - old, advantage, FORMS[name], ROW))
        assert (leaf.grad == 0).any() and (leaf.grad != 0).any()


def test_cispo_keeps_the_gradient_of_tokens_that_ppo_would_clip():
    old, advantage, one = torch.zeros(1), torch.ones(1), torch.ones(1)
    leaf = torch.full((1,), 3.0, requires_grad=True)
    policy_gradient(leaf, old, old, advantage, one, FORMS["ppo"]).backward()
    assert leaf.grad == 0
    leaf.grad = None
    policy_gradient(leaf, old, old, advantage, one, FORMS["cispo"]).backward()
    assert leaf.grad.item() == pytest.approx(-1.2)


def test_k2_has_the_gradient_of_the_kl_on_policy_and_k1_none():
    """Expectations over all tokens of a small vocabulary, exactly."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(6, generator=g, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(6, generator=g, dtype=torch.float64).log_softmax(0)
    policy = logits.log_softmax(0)
    (exact,) = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits, retain_graph=True)
    weight = policy.exp().detach()
    (by_k2,) = torch.autograd.grad(reference_kl(policy, reference, weight, "k2"), logits, retain_graph=True)
    (by_k1,) = torch.autograd.grad(reference_kl(policy, reference, weight, "k1"), logits, retain_graph=True)
    torch.testing.assert_close(by_k2, exact)
    assert by_k1.abs().max() < 1e-12 and exact.abs().max() > 0.05
    kl = (policy.exp() * (policy - reference)).sum().item()
    assert reference_kl(policy, reference, weight, "k1").item() == pytest.approx(kl)


def test_the_value_loss_is_clipped_where_it_would_gain():
    value = torch.tensor([0.5, 0.05, -0.5], requires_grad=True)
    loss = value_loss(value, torch.zeros(3), torch.ones(3), torch.ones(3), 0.2)
    assert loss.item() == pytest.approx(0.5 * (0.8**2 + 0.95**2 + 1.5**2))
    loss.backward()
    assert value.grad[0] == 0  # moved too far already, though in the right direction
    assert value.grad[1].item() == pytest.approx(-0.95) and value.grad[2].item() == pytest.approx(-1.5)


def rl_batch():
    batch = dataclasses.replace(full_batch(), w_ce=torch.zeros(6, 9), w_kl=None, w_kd=None)
    old = target_logprobs(tiny(), batch) + 0.1 * torch.randn(6, 9, generator=torch.Generator().manual_seed(1))
    behaviour = old + 0.3 * torch.randn(6, 9, generator=torch.Generator().manual_seed(2))
    return dataclasses.replace(batch, old_logprob=old, behaviour_logprob=behaviour)


def valued_batch():
    batch = rl_batch()
    g = torch.Generator().manual_seed(5)
    return dataclasses.replace(
        batch, w_value=batch.w_rl * 0.1, value_target=torch.randn(6, 9, generator=g), old_value=torch.zeros(6, 9)
    )


def stepped(batch, objective, rows, own_trunk=None):
    model = tiny()
    if own_trunk is not None:
        critic = attach_critic(model, own_trunk=own_trunk)
        with torch.no_grad():
            critic.head.weight.add_(0.1)
    config = LoopConfig(steps=1, learning_rate=1, micro_batch_rows=rows, max_gradient_norm=1e9)
    metrics = optimiser_step(model, MuonAdamW(model, 0.0), batch, config, 0.0, objective)
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([grad.flatten() for grad in found]), metrics


@pytest.mark.parametrize(
    "name", [name if name in ("ppo", "gspo") else pytest.param(name, marks=pytest.mark.slow) for name in FORMS]
)
def test_losses_gradients_and_measures_do_not_depend_on_micro_batches(name):
    whole, metrics = stepped(rl_batch(), Objective(FORMS[name]), 64)
    assert whole.norm() > 0.01
    for rows in (1, 4):
        cut, cut_metrics = stepped(rl_batch(), Objective(FORMS[name]), rows)
        assert (whole - cut).norm() < 1e-5 * whole.norm()
        assert metrics == pytest.approx(cut_metrics, rel=1e-4, abs=1e-6)
    assert {"clip_fraction", "drift_kl", "drift_kl_max", "effective_samples", "update_kl"} <= metrics.keys()


@pytest.mark.parametrize("own_trunk", [True, False])
def test_a_critic_does_not_depend_on_micro_batches_and_a_trunk_of_its_own_leaves_the_policy_alone(own_trunk):
    whole, metrics = stepped(valued_batch(), Objective(), 64, own_trunk)
    cut, cut_metrics = stepped(valued_batch(), Objective(), 1, own_trunk)
    assert (whole - cut).norm() < 1e-5 * whole.norm() and metrics == pytest.approx(cut_metrics, rel=1e-4, abs=1e-6)
    policy, _ = stepped(rl_batch(), Objective(), 64)
    same = torch.allclose(whole[: len(policy)], policy, atol=1e-7)
    assert same == own_trunk and metrics["loss_value"] > 0 and metrics["value_error"] > 0


@pytest.mark.parametrize("name", ["gspo", "stale", "ppo"])
def test_chunked_logits_give_the_loss_and_gradient_of_whole_ones_for_sequences_too(name, monkeypatch):
    batch, objective = rl_batch(), Objective(FORMS[name])

    def gradient(chunked):
        monkeypatch.setattr(step_module, "WHOLE_LOGITS_VOCABULARY", 0 if chunked else 10**9)
        model = tiny()
        found = step_module.compute(model, batch, objective, weighted_tokens(batch))
        found.loss.backward()
        logprobs = target_logprobs(model, batch)
        measured = {name: value.item() for name, value in found.measured.items()}
        return found.loss.item(), measured, logprobs, torch.cat([p.grad.flatten() for p in model.parameters()])

    whole, chunked = gradient(False), gradient(True)
    assert whole[0] == pytest.approx(chunked[0], rel=1e-5) and whole[1] == pytest.approx(chunked[1], rel=1e-4, abs=1e-6)
    torch.testing.assert_close(whole[2:], chunked[2:], atol=1e-6, rtol=1e-4)


def test_measures_are_what_they_say():
    """KL(pi_old || mu) estimated from mu's samples, its largest term, the share of samples that count."""
    batch = rl_batch()
    _, metrics = stepped(batch, Objective(), 64)
    on = batch.w_rl != 0
    weight = (batch.old_logprob - batch.behaviour_logprob)[on].double().exp()
    each = weight * weight.log() - weight + 1
    assert metrics["drift_kl"] == pytest.approx(each.mean().item(), rel=1e-4)
    assert metrics["drift_kl_max"] == pytest.approx(each.max().item(), rel=1e-4)
    assert metrics["effective_samples"] == pytest.approx(
        (weight.sum() ** 2 / weight.square().sum() / len(weight)).item()
    )
    ratio = (target_logprobs(tiny(), batch) - batch.old_logprob)[on].double()
    assert metrics["update_kl"] == pytest.approx((ratio.exp() - 1 - ratio).mean().item(), rel=1e-3)


def test_on_policy_nothing_is_clipped_and_nothing_has_drifted():
    batch = dataclasses.replace(rl_batch(), old_logprob=None)
    batch = dataclasses.replace(batch, behaviour_logprob=target_logprobs(tiny(), batch))
    _, metrics = stepped(batch, Objective(), 64)
    assert metrics["clip_fraction"] == 0 and metrics["update_kl"] == 0 and metrics["drift_kl"] < 1e-9
    assert metrics["effective_samples"] == pytest.approx(1.0)


def test_the_trainers_logprobs_are_those_of_the_model_where_a_target_is_weighed():
    batch, model = rl_batch(), tiny()
    with torch.no_grad():
        plain = model(batch.tokens_BT[:, :-1]).log_softmax(-1).gather(2, batch.tokens_BT[:, 1:, None])[..., 0]
    for rows in (2, 64):
        torch.testing.assert_close(
            target_logprobs(model, batch, rows), torch.where(batch.w_rl != 0, plain, 0.0), atol=1e-5, rtol=1e-5
        )


CHILD = """
import json, sys
import torch.distributed as dist
from noria.training.parallel import Ranks
from noria.training.step import measure_gradient
from tests.training.test_policy_losses import *
rank, count = int(sys.argv[1]), 2
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=count)
for name in ("ppo", "gspo"):
    found = measure_gradient(tiny(), rl_batch(), 2, Objective(FORMS[name]), Ranks(rank, count))
    print(json.dumps([found.losses, found.norm, found.measured]))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_ranks_measure_what_one_does(tmp_path):
    command = [sys.executable, "-c", CHILD]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meet")], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for rank in (0, 1)
    ]
    outputs = [rank.communicate()[0].splitlines() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0] and outputs[0] == outputs[1]
    for name, line in zip(("ppo", "gspo"), outputs[0], strict=True):
        losses, norm, measured = json.loads(line)
        alone = measure_gradient(tiny(), rl_batch(), 64, Objective(FORMS[name]))
        assert losses == pytest.approx(alone.losses, rel=1e-5) and norm == pytest.approx(alone.norm, rel=1e-5)
        assert measured == pytest.approx(alone.measured, rel=1e-4, abs=1e-6)


def test_a_value_without_a_critic_is_refused():
    with pytest.raises(ValueError, match="attach_critic"):
        loss_of(tiny(), valued_batch(), Objective(), weighted_tokens(valued_batch()))
