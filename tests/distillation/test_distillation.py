"""Distillation: draws in the right places, and a student that learns more from them than from hard labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from noria.distillation import distil, distillation_batch, load_traces, save_traces, teacher_draws
from noria.model import ModelConfig, Transformer
from noria.posttraining import Example, SftConfig
from noria.posttraining.sft import pack
from noria.training import Objective
from noria.training.step import loss_sums

TEACHER = ModelConfig(vocab_size=16, width=16, layers=1, heads=2, kv_heads=1, ffn_width=32, context=12)
STUDENT = TEACHER.model_copy(update={"width": 8, "heads": 1, "ffn_width": 16})


def teacher():
    model, generator = Transformer(TEACHER), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def examples(count=7):
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 9, (count,), generator=g).tolist()
    return [
        Example(tuple(torch.randint(3, 16, (n,), generator=g).tolist()), (False, *(True,) * (n - 1))) for n in lengths
    ]


def test_draws_follow_the_teachers_distribution_at_each_position():
    (found,) = teacher_draws(teacher(), examples(1), draws=20_000, seed=0)
    ids = torch.tensor([examples(1)[0].token_ids])
    expected = teacher()(ids[:, :-1]).softmax(-1)[0].detach().numpy()
    assert found.shape == (ids.shape[1] - 1, 20_000)
    for drawn, probabilities in zip(found, expected, strict=True):
        assert np.abs(np.bincount(drawn, minlength=16) / 20_000 - probabilities).max() < 0.02


def test_draws_are_a_function_of_the_seed_and_survive_the_disk(tmp_path):
    drawn = teacher_draws(teacher(), examples(), 5, seed=1)
    again = teacher_draws(teacher(), examples(), 5, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(drawn, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(drawn, teacher_draws(teacher(), examples(), 5, 2), strict=True))
    save_traces(tmp_path, examples(), drawn)
    loaded, loaded_draws = load_traces(tmp_path)
    assert loaded == examples()
    assert all(np.array_equal(a, b) for a, b in zip(drawn, loaded_draws, strict=True))


def test_each_target_keeps_its_own_draws_when_packed():
    items = examples()
    draws = [np.full((len(item.token_ids) - 1, 2), 0, dtype=np.uint32) for item in items]
    for item, drawn in zip(items, draws, strict=True):
        drawn[:] = np.array(item.token_ids[1:])[:, None]  # a teacher that is certain of the token itself
    batch = distillation_batch(items, draws, 12, 0.25, pad=0)
    chosen = batch.w_kd > 0
    targets = batch.tokens_BT[:, 1:]
    assert torch.equal(batch.teacher_ids[chosen], targets[chosen][:, None].expand(-1, 2))
    torch.testing.assert_close(batch.w_ce[chosen], torch.full((int(chosen.sum()),), 0.75))
    sums = loss_sums(teacher(), batch, Objective())
    assert sums["kd"].item() / 0.25 == pytest.approx(sums["ce"].item() / 0.75, rel=1e-5)


@pytest.mark.parametrize("weight, term", [(0.0, "ce"), (1.0, "kd")])
def test_a_weight_of_nought_or_one_leaves_one_term(weight, term):
    items = examples()
    batch = distillation_batch(items, teacher_draws(teacher(), items, 3, 0), 12, weight, pad=0)
    assert set(loss_sums(teacher(), batch, Objective())) == {term}
    if not weight:
        assert torch.equal(batch.w_ce, pack(items, 12, 0).w_ce)


def test_a_weight_outside_zero_to_one_is_refused():
    with pytest.raises(ValueError, match="teacher_weight"):
        distil(Transformer(STUDENT), examples(), [], SftConfig(), 1.5, 0, 0)


@pytest.mark.slow
def test_a_student_of_draws_comes_closer_to_the_teacher_than_one_of_hard_labels():
    """Few prompts, each with one sampled label: the label says one token, the draws say the distribution."""
    model = teacher()
    g = torch.Generator().manual_seed(0)
    prompts = [(1, 3 + i) for i in range(8)]
    with torch.no_grad():
        truth = model(torch.tensor(prompts))[:, -1].softmax(-1)
    labels = torch.multinomial(truth, 1, generator=g)[:, 0].tolist()
    items = [Example((*p, label), (False, False, True)) for p, label in zip(prompts, labels, strict=True)]
    draws = teacher_draws(model, items, 12, seed=0)

    def distance(weight):
        student = Transformer(STUDENT, seed=1)
        distil(student, items, draws, SftConfig(epochs=40, batch_tokens=64, learning_rate=0.02), weight, 0, seed=0)
        with torch.no_grad():
            found = student(torch.tensor(prompts))[:, -1].log_softmax(-1)
        return (truth * (truth.log() - found)).sum(-1).mean().item()

    assert distance(1.0) < 0.5 * distance(0.0)
