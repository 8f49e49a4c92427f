"""A prompt computed once for its replies gives what separate rows give."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._functorch import config as functorch_config

from noria.model import Transformer
from noria.training import Objective, TokenBatch, compute, shared_prompts
from noria.training.compute import computing
from noria.training.critic import attach_critic, target_values
from noria.training.shared_prompts import lay_together, shared_states
from noria.training.step import measure_gradient, target_logprobs
from tests.model.options import OPTIONS, option, randomised
from tests.training.test_objectives import TINY, tiny

PROMPTS = [[5, 6, 7, 8, 9, 10], [5, 6, 7, 8], [11, 12, 13, 14, 15, 16, 17]]
REPLIES = [[[1, 2, 3], [4], [1, 2]], [[3, 3], [2]], [[9, 9, 9]]]


def batch_of(pad: int = 0) -> TokenBatch:
    """Six rows of three prompts; one token inside a reply has no weight, like a tool's."""
    rows = [prompt + reply for prompt, replies in zip(PROMPTS, REPLIES, strict=True) for reply in replies]
    starts = [len(prompt) for prompt, replies in zip(PROMPTS, REPLIES, strict=True) for _ in replies]
    length = max(map(len, rows))
    tokens_BT = torch.full((len(rows), length), pad)
    w_rl = torch.zeros(len(rows), length - 1)
    for index, (row, start) in enumerate(zip(rows, starts, strict=True)):
        tokens_BT[index, : len(row)] = torch.tensor(row)
        w_rl[index, start - 1 : len(row) - 1] = 1.0
    w_rl[0, starts[0]] = 0.0
    g = torch.Generator().manual_seed(0)
    behaviour, advantage = -3 - torch.rand(w_rl.shape, generator=g), torch.randn(w_rl.shape, generator=g)
    return TokenBatch(
        tokens_BT, torch.zeros_like(w_rl), w_rl=w_rl, behaviour_logprob=behaviour, advantage=advantage * w_rl
    )


def gradient_of(model: Transformer, batch: TokenBatch, rows: int = 64):
    measured = measure_gradient(model, batch, rows, Objective())
    return measured, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.fixture
def separate(monkeypatch):
    """Calls a function with every row computed on its own."""

    def call(function, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(shared_prompts, "shared_states", lambda *_: None)
            return function(*arguments)

    return call


def test_prompts_stand_once_and_replies_see_them_and_themselves():
    batch = batch_of()
    layout = lay_together(batch.tokens_BT[:, :-1], (batch.w_rl != 0))
    assert layout.tokens_GS.tolist()[0] == [5, 6, 7, 8, 9, 10, 1, 2, 10, 10, 1]
    assert layout.positions_GS.tolist()[0] == [0, 1, 2, 3, 4, 5, 6, 7, 5, 5, 6]
    assert layout.place_N.tolist()[:6] == [5, 7, 8, 9, 10, 11 + 3]
    mask = layout.mask
    assert mask.prompt_GP[0].tolist() == [0, 1, 2, 3, 4, 4] and mask.row_E.tolist() == [0, 0, 0, 1, 1, 2]
    assert mask.reply_ER[2].tolist() == [9, 10, 10]
    assert mask.seen_E1RS[2, 0, 1].tolist() == [True] * 5 + [False] + [True, True, False]
    assert bool(mask.seen_E1RS.any(-1).all())  # no row of a softmax is empty


def test_states_of_parts_come_back_where_they_were():
    batch = batch_of()
    layout = lay_together(batch.tokens_BT[:, :-1], (batch.w_rl != 0))
    mask = layout.mask
    states = torch.randn(len(layout.tokens_GS), 2, layout.tokens_GS.shape[1], 4)
    prompts, replies = mask.prompts(states), mask.replies(states)
    assert torch.equal(mask.after_prompts(prompts, replies)[:, :, : prompts.shape[2]], prompts[mask.row_E])
    joined = mask.joined(prompts, replies)
    assert torch.equal(joined[0, :, :11], states[0, :, :11])
    assert torch.equal(joined[1, :, :6], states[1, :, :6])  # after it, padding


NAMES = [name for name in OPTIONS if not ({"local", "forget_gate", "moe"} & OPTIONS[name].keys())]


@pytest.mark.parametrize("name", NAMES)
def test_logprobs_are_those_of_separate_rows(name, separate):
    model = randomised(option(name))
    batch = batch_of()
    assert shared_states(model, batch.tokens_BT[:, :-1], batch.w_rl != 0) is not None
    together, alone = target_logprobs(model, batch), separate(target_logprobs, model, batch)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [64, 2])
def test_losses_and_gradients_are_those_of_separate_rows(rows, separate):
    batch = batch_of()
    together, gradient = gradient_of(tiny(), batch, rows)
    alone, expected = separate(gradient_of, tiny(), batch, rows)
    assert together.losses == pytest.approx(alone.losses, rel=1e-5)
    assert together.measured == pytest.approx(alone.measured, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("own_trunk", [True, False])
def test_a_critic_predicts_what_it_does_on_separate_rows(own_trunk, separate):
    model, batch = tiny(), batch_of()
    torch.nn.init.normal_(attach_critic(model, own_trunk=own_trunk).head.weight)
    arguments = (target_values, model, batch, batch.w_rl != 0)
    torch.testing.assert_close(arguments[0](*arguments[1:]), separate(*arguments), atol=1e-5, rtol=1e-5)


def wide() -> Transformer:
    """Two query heads share a key head, as in the models that are imported."""
    return Transformer(TINY.model_copy(update={"width": 64, "heads": 4, "kv_heads": 2, "context": 1024}))


def long_batch(prompt: int, reply: int) -> TokenBatch:
    """Two prompts of one length, four replies to each."""
    g = torch.Generator().manual_seed(1)
    prompts = torch.randint(1, 20, (2, prompt), generator=g).repeat_interleave(4, 0)
    tokens_BT = torch.cat([prompts, torch.randint(1, 20, (8, reply), generator=g)], 1)
    w_rl = torch.zeros(8, prompt + reply - 1)
    w_rl[:, prompt - 1 :] = 1.0
    advantage = torch.randn(w_rl.shape, generator=g)
    return TokenBatch(
        tokens_BT, torch.zeros_like(w_rl), w_rl=w_rl, behaviour_logprob=torch.full_like(w_rl, -3.0), advantage=advantage
    )


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("prompt", "reply"), [(24, 10), (24, 1), (170, 40)])
def test_a_pass_in_bf16_is_as_near_to_fp32_as_separate_rows_are(prompt, reply, recompute, separate):
    """By plain products where rows are short, by PyTorch's kernel and numbers added to scores where they are not."""
    model = wide()
    batch = long_batch(prompt, reply)
    _, exact = separate(gradient_of, model, batch)
    with computing(model, "bfloat16", compiled=False, recompute_activations=recompute):
        _, together = gradient_of(model, batch)
        _, alone = separate(gradient_of, model, batch)
    assert (together - exact).norm() < 1.5 * (alone - exact).norm() < 0.1 * exact.norm()


@pytest.mark.slow
@pytest.mark.parametrize(("prompt", "reply"), [(24, 10), (170, 140)])
def test_a_compiled_pass_is_as_near_to_fp32_and_attends_in_blocks(prompt, reply, separate):
    model = wide()
    batch = long_batch(prompt, reply)
    _, exact = separate(gradient_of, model, batch)
    with computing(model, "bfloat16", compiled=False, recompute_activations=False):
        _, alone = separate(gradient_of, model, batch)
    with computing(model, "bfloat16", compiled=True, recompute_activations=False):
        with torch.profiler.profile() as found:
            _, compiled = gradient_of(model, batch)
    assert (compiled - exact).norm() < 1.5 * (alone - exact).norm() < 0.1 * exact.norm()
    names = {event.key for event in found.key_averages()}
    assert "noria::blocked_attention_backward" in names
    assert not any("scaled_dot_product" in name for name in names)


@pytest.mark.slow
def test_one_compilation_serves_all_lengths_and_its_bits_depend_on_no_earlier_one():
    """A run that resumes, or computes a step again to check it, has compiled other shapes before."""
    from torch._dynamo.utils import counters

    model = wide()
    batches = [long_batch(*lengths) for lengths in [(24, 10), (22, 130), (30, 17)]]
    found = []
    uncached = torch._inductor.config.patch(fx_graph_cache=False), functorch_config.patch(enable_autograd_cache=False)
    for order in (batches, batches[::-1]):
        torch._dynamo.reset()
        counters.clear()
        with uncached[0], uncached[1], computing(model, "bfloat16", compiled=True, recompute_activations=False):
            gradients = [gradient_of(model, batch)[1] for batch in [*order, order[0]]]
        assert torch.equal(gradients[0], gradients[-1])
        found.append(gradients[:-1])
        assert counters["stats"]["unique_graphs"] <= 10  # five functions, two by their masks: not one a length each
    assert all(map(torch.equal, found[0], found[1][::-1]))


@pytest.mark.slow
def test_what_has_too_many_kinds_to_be_compiled_is_an_error(monkeypatch):
    """Else it would go on uncompiled, with other bits than where it began."""
    monkeypatch.setattr(compute, "MOST_KINDS", 1)
    torch._dynamo.reset()
    model = wide()
    with computing(model, "bfloat16", compiled=True, recompute_activations=False):
        with pytest.raises(FailOnRecompileLimitHit):
            gradient_of(model, long_batch(24, 10))  # prompts have one mask for all, replies one each
    torch._dynamo.reset()


def test_long_replies_to_short_prompts_are_left_as_they_are():
    batch = long_batch(4, 1000)
    chosen_BT = batch.w_rl != 0
    assert shared_states(wide(), batch.tokens_BT[:, :-1], chosen_BT) is None


def test_rows_without_a_target_cost_nothing_and_change_nothing(separate):
    batch = batch_of()
    w_rl = batch.w_rl.clone()
    w_rl[3] = 0
    batch = dataclasses.replace(batch, w_rl=w_rl)
    assert lay_together(batch.tokens_BT[:, :-1], w_rl != 0).mask.row_E.tolist() == [0, 0, 0, 1, 2]
    torch.testing.assert_close(gradient_of(tiny(), batch)[1], separate(gradient_of, tiny(), batch)[1])


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in NAMES])
def test_a_model_that_counts_the_tokens_between_computes_each_row_on_its_own(name):
    batch = batch_of()
    assert shared_states(randomised(option(name)), batch.tokens_BT[:, :-1], batch.w_rl != 0) is None


def test_rows_that_have_no_prompt_or_share_none_are_left_as_they_are():
    model = Transformer(TINY)
    tokens_BT = torch.arange(24).view(4, 6)
    assert shared_states(model, tokens_BT, torch.ones(4, 6, dtype=torch.bool)) is None
    chosen_BT = torch.zeros(4, 6, dtype=torch.bool)
    chosen_BT[:, 3:] = True
    assert shared_states(model, tokens_BT, chosen_BT) is None
