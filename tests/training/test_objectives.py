"""Losses as claims: on-policy ratios, zero gradients where there is no signal, unbiased distillation, micro-batches."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from noria.model import ModelConfig, Transformer
from noria.training import LoopConfig, Objective, PolicyLoss, TokenBatch, mean_loss
from noria.training.loop import optimiser_step
from noria.training.objectives import distillation, policy_gradient, reference_kl
from noria.training.optim import MuonAdamW
from noria.training.step import loss_sums, weighted_tokens

TINY = ModelConfig(vocab_size=32, width=16, layers=2, heads=2, kv_heads=1, ffn_width=32, context=16)
BOUNDS, OBJECTIVE = PolicyLoss(), Objective()


def tiny(seed=1):
    model = Transformer(TINY, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def full_batch(rows=6, length=10, seed=0, draws=3):
    """Every field set, rows of different lengths (weights end early), some tokens without a weight."""
    g = torch.Generator().manual_seed(seed)
    shape = (rows, length - 1)
    inside = torch.arange(length - 1) < torch.arange(3, 3 + rows)[:, None]
    teacher_weight = torch.rand(*shape, draws, generator=g)
    return TokenBatch(
        torch.randint(0, 32, (rows, length), generator=g),
        w_ce=torch.rand(shape, generator=g) * inside,
        w_rl=(torch.rand(shape, generator=g) > 0.5) * inside * 1.0,
        w_kl=torch.rand(shape, generator=g) * inside,
        w_kd=torch.rand(shape, generator=g) * inside,
        behaviour_logprob=-3 - torch.rand(shape, generator=g),
        reference_logprob=-3 - torch.rand(shape, generator=g),
        advantage=torch.randn(shape, generator=g),
        teacher_ids=torch.randint(0, 32, (*shape, draws), generator=g),
        teacher_weight=teacher_weight / teacher_weight.sum(-1, keepdim=True),
    )


def gradients(batch, micro_batch_rows=64, model=None):
    """The gradient that a step would use, as one vector; the step itself has rate 0 and no clipping."""
    model = model or tiny()
    config = LoopConfig(steps=1, learning_rate=1, micro_batch_rows=micro_batch_rows, max_gradient_norm=1e9)
    metrics = optimiser_step(model, MuonAdamW(model, 0.0), batch, config, 0.0, OBJECTIVE)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([grad.flatten() for grad in grads]), metrics


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_loss_and_gradient_do_not_depend_on_micro_batches(rows):
    whole, metrics = gradients(full_batch())
    cut, cut_metrics = gradients(full_batch(), micro_batch_rows=rows)
    assert whole.norm() > 0.1
    assert (whole - cut).abs().max() < 1e-6
    for name in ("loss_ce", "loss_rl", "loss_kl", "loss_kd"):
        assert metrics[name] == pytest.approx(cut_metrics[name], rel=1e-5)


def test_loss_and_gradient_do_not_depend_on_padding():
    batch = full_batch()
    wide = {}
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if value is not None:
            padding = torch.full((2, *value.shape[1:]), 7 if field.name == "tokens_BT" else 0, dtype=value.dtype)
            value = torch.cat([value, padding])
            ends = torch.full((len(value), 5, *value.shape[2:]), 9 if field.name == "tokens_BT" else 0)
            wide[field.name] = torch.cat([value, ends.to(value.dtype)], 1)
    assert (gradients(batch)[0] - gradients(TokenBatch(**wide), 3)[0]).abs().max() < 1e-6


def test_padding_with_garbage_in_unweighted_fields_is_harmless():
    """Fields mean nothing where the weight is 0, not even when they are not finite."""
    batch = full_batch()
    advantage = torch.where(batch.w_rl == 0, torch.nan, batch.advantage)
    nothing = {"w_ce": torch.zeros_like(batch.w_ce), "w_kl": None, "w_kd": None}
    clean, dirty = (dataclasses.replace(batch, advantage=a, **nothing) for a in (batch.advantage, advantage))
    assert torch.equal(gradients(clean)[0], gradients(dirty)[0])


def test_trimming_keeps_segments_and_every_weighted_target():
    batch = dataclasses.replace(full_batch(rows=2), segment_BT=torch.tensor([[0] * 4 + [1] * 6, [2] * 3 + [-1] * 7]))
    trimmed = batch.trimmed()
    assert trimmed.tokens_BT.shape[1] == trimmed.segment_BT.shape[1] == trimmed.w_ce.shape[1] + 1 == 5
    assert trimmed.teacher_ids.shape == (2, 4, 3)
    assert weighted_tokens(trimmed) == weighted_tokens(batch)
    for part, row in zip(batch.split(1), range(2), strict=True):
        kept = part.tokens_BT.shape[1]
        assert torch.equal(part.tokens_BT[0], batch.tokens_BT[row, :kept])
        assert torch.equal(part.segment_BT[0], batch.segment_BT[row, :kept])
        assert not batch.w_ce[row, kept - 1 :].any()
    whole, cut = gradients(batch)[0], gradients(batch, 1)[0]
    # fp32 sums in another order; how far they lie apart depends on the processor's vector width (1.1e-6 with AVX-512).
    assert (whole - cut).norm() < 1e-5 * whole.norm()


def test_on_policy_the_gradient_is_that_of_minus_a_log_pi():
    """The ratio is exactly 1: nothing is clipped, whatever the advantage, and the loss is exactly -sum A."""
    logprob = (-torch.rand(20) * 3).requires_grad_()
    advantage = torch.randn(20)
    loss = policy_gradient(logprob, logprob.detach(), logprob.detach(), advantage, torch.ones(20), BOUNDS)
    loss.backward()
    assert torch.equal(logprob.grad, -advantage)
    assert loss.item() == pytest.approx(-advantage.sum().item(), rel=1e-6)


def test_the_loop_takes_the_trainers_own_logprobs_as_old_ones():
    batch = dataclasses.replace(full_batch(), w_ce=torch.zeros(6, 9), w_kl=None, w_kd=None)
    model = tiny()
    with torch.no_grad():
        logprobs = model(batch.tokens_BT[:, :-1]).log_softmax(-1).gather(2, batch.tokens_BT[:, 1:, None])[..., 0]
    batch = dataclasses.replace(batch, behaviour_logprob=logprobs)
    found = gradients(batch)[0]
    model.zero_grad()
    now = model(batch.tokens_BT[:, :-1]).log_softmax(-1).gather(2, batch.tokens_BT[:, 1:, None])[..., 0]
    (-(batch.w_rl * batch.advantage * now).sum() / (batch.w_rl != 0).sum()).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert (found - expected).abs().max() < 1e-6


def test_the_surrogate_is_clipped_on_the_side_where_it_would_gain():
    old = torch.zeros(4)
    logprob = torch.tensor([0.5, 0.5, -0.5, -0.5]).requires_grad_()
    policy_gradient(logprob, old, old, torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.ones(4), BOUNDS).backward()
    assert logprob.grad[0] == 0 and logprob.grad[3] == 0  # already moved too far the right way
    assert logprob.grad[1] > 0 and logprob.grad[2] < 0  # moved the wrong way: pulled back


def test_importance_weights_are_truncated_and_carry_no_gradient():
    old, behaviour = torch.tensor([-1.0, -1.0]), torch.tensor([-5.0, -1.5])
    logprob = old.clone().requires_grad_()
    policy_gradient(logprob, old, behaviour, torch.ones(2), torch.ones(2), BOUNDS).backward()
    torch.testing.assert_close(-logprob.grad, torch.tensor([2.0, 0.5]).exp().clamp_max(2.0))


def test_tokens_without_weight_get_no_gradient():
    """Tool results and prompts: their logits' gradient is exactly zero, whatever advantage they are given."""
    batch = dataclasses.replace(full_batch(), w_ce=torch.zeros(6, 9), w_kl=None, w_kd=None)
    seen = []

    class Watched(Transformer):
        def logits(self, hidden):
            logits = super().logits(hidden)
            seen.append(len(logits))
            return logits

    loss_sums(Watched(TINY), batch, OBJECTIVE)["rl"].backward()
    assert seen == [int((batch.w_rl != 0).sum())]
    louder = dataclasses.replace(batch, advantage=torch.where(batch.w_rl == 0, 1e6, batch.advantage))
    assert torch.equal(gradients(batch)[0], gradients(louder)[0])


def test_a_batch_without_any_weight_changes_nothing():
    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = MuonAdamW(model, 0.1)
    batch = TokenBatch(torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 3))
    metrics = optimiser_step(model, optimizer, batch, LoopConfig(steps=1, learning_rate=0.1), 0.1, OBJECTIVE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not optimizer.state and metrics["gradient_norm"] == 0 and not metrics["skipped"]


def test_k3_is_never_negative_and_zero_at_equality():
    logprob, reference = -torch.rand(1000) * 5, -torch.rand(1000) * 5
    one = torch.ones(1)
    for a, b in zip(logprob[:50], reference[:50], strict=True):
        assert reference_kl(a[None], b[None], one) >= 0
    assert reference_kl(logprob, logprob, torch.ones(1000)) == 0
    same = logprob.clone().requires_grad_()
    reference_kl(same, logprob, torch.ones(1000)).backward()
    assert not same.grad.any()


def test_k3_is_an_unbiased_estimate_of_the_kl():
    g = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(6, generator=g).log_softmax(0) for _ in range(2))
    exact = (policy.exp() * (policy - reference)).sum()
    each = torch.stack([reference_kl(policy[i, None], reference[i, None], torch.ones(1)) for i in range(6)])
    assert (policy.exp() * each).sum().item() == pytest.approx(exact.item(), rel=1e-5)


def test_distillation_by_draws_is_unbiased():
    """Averaged over many draws it is the cross-entropy to the teacher's whole distribution, in value and gradient."""
    g = torch.Generator().manual_seed(0)
    vocabulary, draws = 40, 200_000
    teacher = (2 * torch.randn(3, vocabulary, generator=g)).softmax(-1)
    logits = torch.randn(3, vocabulary, generator=g, requires_grad=True)
    ids = torch.multinomial(teacher, draws, replacement=True, generator=g)
    weight = torch.tensor([1.0, 0.5, 2.0])
    loss = distillation(logits.log_softmax(-1).gather(1, ids), torch.full(ids.shape, 1.0 / draws), weight)
    exact = -(weight[:, None] * teacher * logits.log_softmax(-1)).sum()
    assert loss.item() == pytest.approx(exact.item(), rel=0.01)
    (by_draws,) = torch.autograd.grad(loss, logits)
    (whole,) = torch.autograd.grad(exact, logits)
    assert (by_draws - whole).abs().max() < 0.01


def test_a_missing_field_is_named():
    batch = dataclasses.replace(full_batch(), advantage=None)
    with pytest.raises(ValueError, match="`advantage`"):
        loss_sums(tiny(), batch, OBJECTIVE)


def test_mean_loss_weighs_tokens_not_batches():
    model, batch = tiny(), dataclasses.replace(full_batch(), w_rl=None, w_kl=None, w_kd=None)
    unweighted = TokenBatch(torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 3))
    assert mean_loss(model, [batch]) == pytest.approx(mean_loss(model, [unweighted, *batch.split(1)]), rel=1e-6)
    with pytest.raises(ValueError, match="no token"):
        mean_loss(model, [unweighted])


def test_the_reported_loss_is_the_mean_over_weighted_tokens():
    """Tokens count once however large their weight; with weights of 1 it is torch's own cross-entropy."""
    batch = full_batch()
    inside = (batch.w_ce > 0).float()
    model = tiny()
    with torch.no_grad():
        logits = model(batch.tokens_BT[:, :-1])
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.tokens_BT[:, 1:], reduction="none")
    for weight in (inside, batch.w_ce):
        _, metrics = gradients(TokenBatch(batch.tokens_BT, weight), 2)
        assert metrics["loss_ce"] == pytest.approx(((weight * each).sum() / inside.sum()).item(), rel=1e-5)
