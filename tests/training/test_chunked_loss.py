"""Logits made in chunks give the loss and the gradients of whole logits, for every term."""

from __future__ import annotations

import pytest
import torch

from noria.model import ModelConfig, Transformer
from noria.training import Objective, PolicyLoss, mean_loss
from noria.training import step as step_module
from noria.training.chunked_loss import chunked_sums
from noria.training.step import loss_of, loss_sums, target_logprobs, weighted_tokens
from tests.training.test_objectives import TINY, full_batch, tiny

OBJECTIVE = Objective()


def backward(model, batch, chunked, monkeypatch):
    monkeypatch.setattr(step_module, "WHOLE_LOGITS_VOCABULARY", 0 if chunked else 10**9)
    model.zero_grad(set_to_none=True)
    loss, sums = loss_of(model, batch, OBJECTIVE, weighted_tokens(batch))
    loss.backward()
    return loss.detach(), {name: value.detach() for name, value in sums.items()}, [p.grad for p in model.parameters()]


@pytest.mark.parametrize("changes", [{}, {"tied": False}, {"logit_soft_cap": 0.5}])
def test_all_terms_and_gradients_equal_those_of_whole_logits(changes, monkeypatch):
    model = Transformer(TINY.model_copy(update=changes), 3)
    model.load_state_dict(tiny().state_dict())
    batch = full_batch()
    # A teacher's id that is the target, and one drawn twice: their slopes add up.
    batch.teacher_ids[..., 0] = batch.tokens_BT[:, 1:]
    batch.teacher_ids[..., 2] = batch.teacher_ids[..., 1]
    whole = backward(model, batch, False, monkeypatch)
    chunked = backward(model, batch, True, monkeypatch)
    torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=1e-5)
    assert set(chunked[1]) == {"ce", "rl", "kl", "kd"} and max(grad.abs().max() for grad in whole[2]) > 0.01


@pytest.mark.parametrize("cap", [None, 0.5])
@pytest.mark.parametrize("sequences", [False, True])
def test_a_temperature_divides_logits_in_chunks_as_it_does_whole(cap, sequences, monkeypatch):
    """Whole logits are differentiated by autograd; the chunks have slopes of their own."""
    model = Transformer(TINY.model_copy(update={"logit_soft_cap": cap}), 3)
    model.load_state_dict(tiny().state_dict())
    policy = PolicyLoss(form="gspo") if sequences else PolicyLoss()
    objective = Objective(policy, temperature=0.6)

    def found(chunked):
        monkeypatch.setattr(step_module, "WHOLE_LOGITS_VOCABULARY", 0 if chunked else 10**9)
        model.zero_grad(set_to_none=True)
        batch = full_batch()
        loss, sums = loss_of(model, batch, objective, weighted_tokens(batch))
        loss.backward()
        scored = target_logprobs(model, batch, temperature=0.6)
        return loss.detach(), {k: v.detach() for k, v in sums.items()}, scored, [p.grad for p in model.parameters()]

    whole, chunked = found(False), found(True)
    torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=1e-4)
    batch = full_batch()
    with torch.no_grad():
        logprobs = (
            (model(batch.tokens_BT[:, :-1]) / 0.6).log_softmax(-1).gather(2, batch.tokens_BT[:, 1:, None])[..., 0]
        )
    on = whole[2] != 0
    torch.testing.assert_close(whole[2][on], logprobs[on], atol=1e-5, rtol=1e-5)


def head_and_states(targets=37, vocabulary=50, width=8):
    g = torch.Generator().manual_seed(0)
    head = torch.randn(vocabulary, width, generator=g, requires_grad=True)
    states = torch.randn(targets, width, generator=g, requires_grad=True)
    return states, head, torch.randint(0, vocabulary, (targets,), generator=g)


@pytest.mark.parametrize("chunk", [1, 5, 37, 100])
def test_loss_does_not_depend_on_the_size_of_a_chunk(chunk):
    states, head, target = head_and_states()
    loss, sums = chunked_sums(
        states, head, target, None, lambda _, chosen: {"ce": -chosen.logprob_N.sum()}, {"ce": 37.0}, chunk=chunk
    )
    found = torch.autograd.grad(3.0 * loss, (states, head))
    twin = torch.nn.functional.cross_entropy(states @ head.T, target)
    torch.testing.assert_close(loss, twin)
    torch.testing.assert_close(sums["ce"] / 37, twin)
    torch.testing.assert_close(found, torch.autograd.grad(3.0 * twin, (states, head)))


def test_no_more_than_a_chunk_of_logits_is_ever_alive():
    states, head, target = head_and_states(targets=512, vocabulary=1000)
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    with Sizes():
        loss, _ = chunked_sums(
            states, head, target, None, lambda _, chosen: {"ce": -chosen.logprob_N.sum()}, {"ce": 1.0}, chunk=16
        )
        loss.backward()
    assert largest == 16 * 1000


def test_a_certain_token_keeps_its_small_slope_in_bf16():
    """1 - p is far below what bf16 can tell apart from 1, so it must be subtracted before it is rounded."""
    head = torch.eye(4, dtype=torch.float32).mul_(8.0).requires_grad_()
    states = torch.eye(4, dtype=torch.bfloat16)[:1].requires_grad_()
    loss, _ = chunked_sums(
        states, head, torch.tensor([0]), None, lambda _, chosen: {"ce": -chosen.logprob_N.sum()}, {"ce": 1.0}
    )
    loss.backward()
    rest = 1.0 - torch.tensor([8.0, 0, 0, 0]).softmax(0)[0]
    assert states.grad[0, 0].item() == pytest.approx(-8.0 * rest.item(), rel=0.01)


def test_evaluation_makes_no_gradient_and_gives_the_same_loss(monkeypatch):
    model, batch = tiny(), full_batch()
    whole = mean_loss(model, [batch])
    monkeypatch.setattr(step_module, "WHOLE_LOGITS_VOCABULARY", 0)
    assert mean_loss(model, [batch]) == pytest.approx(whole, rel=1e-6)


def test_small_vocabularies_in_fp32_keep_whole_logits_bit_for_bit():
    model, batch = tiny(), full_batch()
    counts = weighted_tokens(batch)
    loss, _ = loss_of(model, batch, OBJECTIVE, counts)
    sums = loss_sums(model, batch, OBJECTIVE)
    assert loss.item() == sum(sums[name] / counts[name] for name in sums).item()


def test_a_large_vocabulary_is_chunked_by_default(monkeypatch):
    config = ModelConfig(vocab_size=8192, width=16, layers=1, heads=2, kv_heads=1, ffn_width=16, context=16)
    monkeypatch.setattr(step_module, "_sums_from_whole_logits", None)
    batch = full_batch()
    loss, _ = loss_of(Transformer(config), batch, OBJECTIVE, weighted_tokens(batch))
    assert torch.isfinite(loss)


def sums_of(targets: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(the loss, the head) of so many targets, each of weight 1."""
    g = torch.Generator().manual_seed(0)
    head_VD = torch.randn(32, 16, generator=g).requires_grad_()
    terms = lambda part, chosen: {"ce": -chosen.logprob_N.sum()}  # noqa: E731
    hidden_ND, target_N = torch.randn(targets, 16, generator=g), torch.arange(targets)
    return chunked_sums(hidden_ND, head_VD, target_N, None, terms, {"ce": 1.0}, chunk=3)[0], head_VD


def test_a_slope_is_passed_on_and_no_target_gives_no_gradient():
    (loss, head_VD), (again, same_head_VD) = sums_of(5), sums_of(5)
    loss.backward()
    (again * -2.0).backward()
    torch.testing.assert_close(same_head_VD.grad, -2.0 * head_VD.grad)
    assert head_VD.grad.abs().max() > 0
    loss, head_VD = sums_of(0)
    loss.backward()
    assert head_VD.grad is not None and not head_VD.grad.any()


def test_a_second_backward_pass_says_that_the_gradient_is_gone():
    loss, _ = sums_of(2)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute it again"):
        loss.backward()
