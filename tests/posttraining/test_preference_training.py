"""Preference optimisation and reward models trained on a rule that can be seen: reply with an even token."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from noria.data.tokenizer import train_tokenizer
from noria.model import ModelConfig, Transformer
from noria.model.folder import ModelFolderError
from noria.posttraining import (
    Judged,
    LoraConfig,
    Pair,
    PreferenceConfig,
    RewardModelConfig,
    adapt,
    prefer,
    train_reward_model,
)
from noria.posttraining.preference import mismatched, preference_steps
from noria.posttraining.reward_model import (
    balance_lengths,
    load_reward_model,
    report,
    report_of,
    reward_grade,
    save_reward_model,
    score_replies,
)
from noria.posttraining.sft import Example
from noria.training import Progress
from noria.training.critic import critic_of
from noria.training.integrity import checksum
from noria.types import GraderRef, Message, Node, Task, Trace

TINY = ModelConfig(vocab_size=40, width=16, layers=1, heads=2, kv_heads=1, ffn_width=32, context=16)


def reply(prompt, tokens):
    return Example((*prompt, *tokens), (False,) * len(prompt) + (True,) * len(tokens))


def even_is_better(count=64, seed=0, longer=None):
    """Pairs whose chosen reply ends in an even token; `longer`: 1 where the chosen is longer, -1 where the rejected."""
    g = torch.Generator().manual_seed(seed)
    found = []
    for index in range(count):
        prompt = torch.randint(3, 40, (2,), generator=g).tolist()
        body = torch.randint(3, 40, (3,), generator=g).tolist()
        even, odd = (int(torch.randint(2, 19, (), generator=g)) * 2 + odd for odd in (0, 1))
        more = longer[index] if longer else 0
        found.append(
            Pair(
                reply(prompt, [*body[: 3 if more >= 0 else 1], even]),
                reply(prompt, [*body[: 3 if more <= 0 else 1], odd]),
            )
        )
    return found


def trained(loss, data=None, progress=None, **settings):
    model = Transformer(TINY)
    reference = None if loss == "simpo" else copy.deepcopy(model)
    config = PreferenceConfig(loss=loss, epochs=4, batch=16, learning_rate=0.01, **settings)
    return prefer(model, data or even_is_better(), config, 0, 0, progress, reference), model


@pytest.mark.parametrize("loss", ["dpo", "ipo", "simpo"])
def test_pairs_teach_the_rule_and_both_logprobs_are_told_at_every_step(loss):
    history, _ = trained(loss)
    assert history[-1]["preference_accuracy"] > 0.9 and history[0]["preference_accuracy"] < 0.8
    assert all(
        {"chosen_logprob", "rejected_logprob", "chosen_reward", "rejected_reward"} <= row.keys() for row in history
    )
    assert history[-1]["chosen_reward"] > history[-1]["rejected_reward"]


def test_kto_learns_from_single_replies():
    pairs = even_is_better()
    judged = [Judged(pair.chosen if index % 2 else pair.rejected, bool(index % 2)) for index, pair in enumerate(pairs)]
    history, _ = trained("kto", judged)
    assert history[-1]["preference_accuracy"] > 0.9 and history[0]["reference_point"] == 0
    assert all(row["reference_point"] >= 0 for row in history)


def test_the_reference_point_pairs_each_prompt_with_the_next_ones_reply():
    one, two = Judged(reply([1, 2], [7, 8]), True), Judged(reply([3], [9]), False)
    assert [entry.item.token_ids for entry in mismatched([one, two])] == [(1, 2, 9), (3, 7, 8)]
    assert [entry.item.trained for entry in mismatched([one, two])] == [(False, False, True), (False, True, True)]


def test_no_step_of_kto_is_of_one_reply_alone():
    config = PreferenceConfig(loss="kto", batch=4, epochs=2)
    steps = preference_steps(9, config, 0)
    assert [len(step) for step in steps] == [4, 5, 4, 5]


def test_with_adapters_a_model_is_its_own_reference():
    plain, _ = trained("dpo")
    model = Transformer(TINY)
    adapt(model, LoraConfig(rank=4))
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    config = PreferenceConfig(loss="dpo", epochs=4, batch=16, learning_rate=0.01)
    history = prefer(model, even_is_better(), config, 0, 0)
    assert history[0]["loss_pair"] == pytest.approx(math.log(2), rel=1e-5) == plain[0]["loss_pair"]
    assert history[-1]["preference_accuracy"] > history[0]["preference_accuracy"] + 0.2
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


def test_interrupted_preference_training_continues_bitwise(tmp_path):
    class Killed(BaseException):
        pass

    def told(step, steps, metrics):
        if step == 6:
            raise Killed

    history, model = trained("dpo")
    progress = Progress(tmp_path, checkpoint_steps=2, checkpoint_seconds=1e9)
    with pytest.raises(Killed):
        trained("dpo", progress=dataclasses.replace(progress, on_step=told))
    again, resumed = trained("dpo", progress=progress)
    assert again == history and checksum(model.parameters()) == checksum(resumed.parameters())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss": "ipo", "label_smoothing": 0.1}, "cDPO"),
        ({"loss": "dpo", "margin": 1.0}, "leave it out"),
        ({"loss": "kto", "normalise_lengths": True}, "whole replies"),
        ({"loss": "kto", "batch": 1}, "at least 2"),
    ],
)
def test_contradictions_are_refused(settings, said):
    with pytest.raises(ValidationError, match=said):
        PreferenceConfig(**settings)


def test_data_of_the_other_kind_and_a_missing_reference_are_refused():
    with pytest.raises(ValueError, match="sequence of Judged"):
        prefer(Transformer(TINY), even_is_better(2), PreferenceConfig(loss="kto"), 0, 0)
    with pytest.raises(ValueError, match="frozen copy"):
        prefer(Transformer(TINY), even_is_better(2), PreferenceConfig(), 0, 0)
    with pytest.raises(ValueError, match="at least one"):
        prefer(Transformer(TINY), [], PreferenceConfig(loss="simpo"), 0, 0)


# -- reward models --


def rewarded(pairs, **settings):
    model = Transformer(TINY)
    config = RewardModelConfig(epochs=6, batch_pairs=16, learning_rate=0.01, **settings)
    return train_reward_model(model, pairs, config, 0, 0), model


def test_a_reward_model_learns_the_rule_and_scores_stay_around_zero():
    history, model = rewarded(even_is_better(96))
    assert history[-1]["preference_accuracy"] > 0.9
    found = report(model, even_is_better(64, seed=9), 0)
    assert found.accuracy > 0.85 and found.matched == found.pairs == 64 and found.length_rule == 0.5
    assert abs(found.mean_score) < 0.5


def without_a_rule(pairs):
    """The same pairs of one filler token and a last token drawn anew: nothing but length is left to learn."""
    g = torch.Generator().manual_seed(5)

    def drawn(item):
        last = int(torch.randint(3, 40, (), generator=g))
        return dataclasses.replace(item, token_ids=(*[7] * (len(item.trained) - 1), last))

    return [Pair(drawn(pair.chosen), drawn(pair.rejected)) for pair in pairs]


def test_length_is_learnt_where_pairs_are_not_balanced_and_not_where_they_are():
    """In 90% of the pairs the longer reply is the chosen one; on held-out pairs the shorter one is right."""
    longer = [-1 if index % 10 == 0 else 1 for index in range(160)]
    pairs, heldout = even_is_better(160, longer=longer), even_is_better(48, seed=9, longer=[-1] * 48)
    balanced = balance_lengths(pairs, 0)
    lengths = [len(pair.chosen.token_ids) - len(pair.rejected.token_ids) for pair in balanced]
    assert len(balanced) == 32 and sum(lengths) == 0
    pairs, heldout = without_a_rule(pairs), without_a_rule(heldout)
    plain, controlled = (report(rewarded(pairs, balance_lengths=on)[1], heldout, 0) for on in (False, True))
    assert plain.accuracy < 0.2 and plain.length_correlation > 0.5 and plain.length_rule == 0.0
    assert controlled.accuracy > 0.3 and controlled.length_correlation < plain.length_correlation


def test_the_report_is_its_definition():
    chosen, rejected = np.array([2.0, 0.0, 1.0, 3.0]), np.array([1.0, 1.0, 1.0, 0.0])
    found = report_of(chosen, rejected, np.array([10, 100, 50, 7]), np.array([5, 95, 50, 20]))
    assert found.accuracy == 2.5 / 4 and found.matched == 2 and found.matched_accuracy == 0.25
    assert found.length_rule == 2.5 / 4 and found.mean_score == 9 / 8
    scores, lengths = [2, 0, 1, 3, 1, 1, 1, 0], [10, 100, 50, 7, 5, 95, 50, 20]
    assert found.length_correlation == pytest.approx(np.corrcoef(scores, lengths)[0, 1])
    assert math.isnan(report_of(chosen, rejected, np.array([9] * 4), np.array([1] * 4)).matched_accuracy)


def test_a_set_where_one_side_is_always_longer_cannot_be_balanced():
    with pytest.raises(ValueError, match="balance_lengths = false"):
        rewarded(even_is_better(4, longer=[1] * 4))


def test_scores_do_not_depend_on_what_is_scored_beside():
    _, model = rewarded(even_is_better(32))
    items = [side for pair in even_is_better(9, seed=3, longer=[1, -1, 0] * 3) for side in (pair.chosen, pair.rejected)]
    together = score_replies(model, items, 0)
    alone = [score_replies(model, [item], 0)[0] for item in items]
    assert together == pytest.approx(alone, abs=1e-5)


def test_a_reward_model_comes_back_from_its_folder_and_a_headless_one_is_refused(tmp_path):
    tokenizer = train_tokenizer(["say it"] * 3, 300)
    tokenizer.save(tmp_path / "tokenizer.json")
    _, model = rewarded(even_is_better(16))
    save_reward_model(tmp_path / "reward", model, tmp_path / "tokenizer.json")
    assert critic_of(model) is not None
    items = [pair.chosen for pair in even_is_better(4)]
    assert score_replies(load_reward_model(tmp_path / "reward"), items, 0) == score_replies(model, items, 0)
    (tmp_path / "reward" / "reward_head.safetensors").unlink()
    with pytest.raises(ModelFolderError, match="no reward head"):
        load_reward_model(tmp_path / "reward")
    with pytest.raises(ValueError, match="no reward head"):
        save_reward_model(tmp_path / "other", Transformer(TINY), tmp_path / "tokenizer.json")


def test_a_helpfulness_reward_sees_the_answer_alone_and_a_safety_reward_the_whole_output():
    tokenizer = train_tokenizer(["a plan and an answer"] * 3, 300)
    model = Transformer(TINY.model_copy(update={"vocab_size": tokenizer.vocab_size, "context": 128}), seed=1)
    train_reward_model(
        model, [Pair(reply([5], [6]), reply([5], [7]))] * 8, RewardModelConfig(learning_rate=0.05, batch_pairs=2), 0, 0
    )
    task = Task("t", (Message("user", "?"),), GraderRef("g", "1"), "", "f", "helpful")

    def scored(thinking, whole_output):
        said = Trace(
            "x", "t", (Node((), Message("assistant", f"<think>{thinking}</think>an answer")),), 0, "p", "finished"
        )
        return reward_grade(model, tokenizer, 0, "v1", [task], [said], whole_output)[0]

    assert scored("a plan", False) == scored("another plan and more", False)
    assert scored("a plan", True).value != scored("another plan and more", True).value
    assert scored("a plan", True).grader == GraderRef("reward_model", "v1")
