"""Adapters: the start, training, merging, PEFT's file, and adapters that do not fit."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import FileSystemReader

from noria.data.tokenizer import train_tokenizer
from noria.inference import Engine, Request, SamplingParams, score
from noria.model import ModelConfig, Transformer
from noria.model.config import MoE
from noria.posttraining import (
    GrpoConfig,
    LoraConfig,
    PpoConfig,
    RewardModelConfig,
    SftConfig,
    adapt,
    fine_tune,
    improve,
    improve_with_critic,
    merge,
    train_reward_model,
)
from noria.posttraining.lora import (
    AdapterError,
    has_adapters,
    load_adapter,
    merged_state,
    save_adapter,
    without_adapters,
)
from noria.posttraining.reward_model import load_reward_model, save_reward_model, score_replies
from noria.training import Progress
from noria.training.checkpoint import complete
from noria.training.integrity import checksum
from tests.posttraining.test_grpo import TINY, Bandit, tasks
from tests.posttraining.test_preference_training import even_is_better
from tests.posttraining.test_reinforce import half
from tests.posttraining.test_sft import some_examples

RANK_2 = LoraConfig(rank=2, alpha=4)
WIDE = ModelConfig(
    vocab_size=40, width=32, layers=2, heads=2, kv_heads=1, ffn_width=48, context=24, tied=False, activation="swiglu"
)
IDS_OF_TINY = [[1, 10, 12]]
IDS = [[3, 5, 7, 9, 11, 13], [4, 8, 15, 16, 23]]


def seeded(config=WIDE, seed=2):
    model = Transformer(config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def moved(model, seed=3):
    """Adapters that do something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b"):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def test_a_new_adapter_changes_nothing_and_only_it_is_trained():
    model, plain = seeded(), seeded()
    names = adapt(model, RANK_2)
    assert torch.equal(model(torch.tensor(IDS[:1])), plain(torch.tensor(IDS[:1])))
    assert len(names) == 2 * 7
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 14 and all(name.endswith(("lora_a", "lora_b")) for name in trained)


def test_the_adapted_weight_is_its_formula_and_merging_keeps_it():
    model, plain = seeded(), seeded()
    adapt(model, RANK_2)
    moved(model)
    layer, before = model.blocks[1].up, plain.blocks[1].up.weight
    low_rank = layer.parametrizations.weight[0]
    torch.testing.assert_close(layer.weight, before + 2.0 * low_rank.lora_b @ low_rank.lora_a)
    adapted = model(torch.tensor(IDS[:1]))
    assert (adapted - plain(torch.tensor(IDS[:1]))).abs().max() > 0.1
    state = merged_state(model)
    assert state.keys() == plain.state_dict().keys()
    merge(model)
    assert torch.equal(model(torch.tensor(IDS[:1])), adapted)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_without_its_adapters_a_model_is_what_it_was():
    model, plain = seeded(), seeded()
    adapt(model, RANK_2)
    moved(model)
    with without_adapters(model):
        assert score(model, IDS) == score(plain, IDS)
    assert score(model, IDS) != score(plain, IDS)


def test_the_engine_samples_from_the_adapted_weights():
    model = seeded()
    adapt(model, RANK_2)
    moved(model)
    request = Request(IDS[0], SamplingParams(max_tokens=6, seed=1))
    (found,) = Engine(model, 2).generate([request])
    scored = score(model, [[*IDS[0], *found.token_ids]])[0][-len(found.token_ids) :]
    assert found.logprobs == pytest.approx(scored, abs=1e-4)


def test_fine_tuning_trains_adapters_and_leaves_the_frozen_weights_bitwise_alone():
    model = seeded()
    frozen = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapt(model, LoraConfig(rank=4))
    history = fine_tune(model, some_examples(6), SftConfig(epochs=12, batch_tokens=64, learning_rate=0.02), 0, seed=0)
    assert history[-1]["loss_ce"] < 0.7 * history[0]["loss_ce"]
    with without_adapters(model):
        for name, tensor in merged_state(model).items():
            assert torch.equal(tensor, frozen[name]), name


def test_an_interrupted_rl_run_of_adapters_continues_bitwise_and_saves_no_frozen_weight(tmp_path):
    config = GrpoConfig(steps=5, prompts=3, group=4, learning_rate=0.02, lag=1, reference_kl=0.05)

    def run(progress=None, stop_at=None):
        model, calls = Transformer(TINY), []
        adapt(model, LoraConfig(rank=2, alpha=4))
        bandit = Bandit(model)

        def roll(chosen, seeds):
            calls.append(1)
            if len(calls) == stop_at:
                raise KeyboardInterrupt
            return bandit.roll(chosen, seeds)

        return improve(model, tasks(8), roll, half, config, 0, 7, progress), model

    history, model = run()
    progress = Progress(tmp_path, checkpoint_steps=1, checkpoint_seconds=1e9)
    with pytest.raises(KeyboardInterrupt):
        run(progress, stop_at=4)
    again, resumed = run(progress)
    assert again == history and checksum(model.parameters()) == checksum(resumed.parameters())
    assert any(row["loss_kl"] > 0 for row in history)  # to itself without its adapters
    saved = FileSystemReader(complete(tmp_path)[-1]).read_metadata().state_dict_metadata
    weights = [name for name in saved if name.startswith("model.")]
    assert weights and all(name.endswith(("lora_a", "lora_b")) for name in weights)


def test_the_engine_follows_the_adapters_while_they_are_trained():
    """One engine for the whole run: what it records stays what the trainer computes."""
    model = Transformer(TINY)
    with torch.no_grad():
        model.embedding.weight.mul_(20)
    adapt(model, LoraConfig(rank=4))
    config = GrpoConfig(steps=10, prompts=3, group=4, learning_rate=0.05)
    history = improve(model, tasks(8), Bandit(model).roll, half, config, 0, 7)
    assert all(row["drift_kl_max"] < 1e-5 for row in history if "loss_rl" in row)
    with without_adapters(model):
        before = score(model, IDS_OF_TINY)
    assert abs(before[0][-1] - score(model, IDS_OF_TINY)[0][-1]) > 0.01


def test_ppo_trains_adapters_of_policy_and_critic_alone():
    model = Transformer(TINY)
    adapt(model, LoraConfig(rank=2))
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    config = PpoConfig(steps=4, prompts=3, group=4, learning_rate=0.02)
    history = improve_with_critic(model, tasks(8), Bandit(model).roll, half, config, 0, 7)
    assert history[-1]["loss_value"] < history[0]["loss_value"]
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    assert any(p.any() for name, p in model.named_parameters() if name.endswith("lora_b"))


def test_a_reward_model_of_adapters_is_saved_merged(tmp_path):
    tokenizer = train_tokenizer(["say it"] * 3, 300)
    tokenizer.save(tmp_path / "tokenizer.json")
    model = Transformer(WIDE)
    adapt(model, LoraConfig(rank=4))
    pairs = even_is_better(64)
    settings = RewardModelConfig(epochs=6, batch_pairs=16, learning_rate=0.02)
    history = train_reward_model(model, pairs, settings, 0, 0)
    assert history[-1]["preference_accuracy"] > history[0]["preference_accuracy"] + 0.2
    save_reward_model(tmp_path / "reward", model, tmp_path / "tokenizer.json")
    items = [pair.chosen for pair in pairs[:5]]
    again = load_reward_model(tmp_path / "reward")
    assert score_replies(again, items, 0) == score_replies(model, items, 0) and has_adapters(model)


def test_an_adapter_file_has_pefts_names_and_comes_back(tmp_path):
    model = seeded()
    adapt(model, RANK_2)
    moved(model)
    save_adapter(tmp_path, model, RANK_2, base="some/model")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    key = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
    assert len(tensors) == 28 and tensors[key].shape == (2, 32)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["r"] == 2 and settings["lora_alpha"] == 4 and "down_proj" in settings["target_modules"]
    again = seeded()
    assert load_adapter(tmp_path, again) == RANK_2
    assert score(again, IDS) == score(model, IDS)


def test_an_adapter_of_another_shape_is_refused_and_nothing_is_changed(tmp_path):
    model = seeded()
    adapt(model, RANK_2)
    save_adapter(tmp_path, model, RANK_2)
    other = Transformer(WIDE.model_copy(update={"width": 64}))
    before = checksum(other.parameters())
    with pytest.raises(AdapterError, match=r"_proj\.lora_[AB]\.weight is .*another shape"):
        load_adapter(tmp_path, other)
    assert checksum(other.parameters()) == before and all(p.requires_grad for p in other.parameters())
    with pytest.raises(AdapterError, match="belongs to no linear layer"):
        load_adapter(tmp_path, Transformer(WIDE.model_copy(update={"layers": 1})))
    half_file = {k: v for k, v in load_file(tmp_path / "adapter_model.safetensors").items() if "lora_A" in k}
    save_file(half_file, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="only one of"):
        load_adapter(tmp_path, seeded())
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match="no LoRA adapter that can be read"):
        load_adapter(tmp_path, seeded())


def test_settings_that_fit_no_layer_are_refused():
    with pytest.raises(AdapterError, match="no linear layer is named q_proj: there are down, gate"):
        adapt(seeded(), LoraConfig(targets=("q_proj",)))
    with pytest.raises(AdapterError, match="rank 20 exceeds"):
        adapt(seeded(), LoraConfig(rank=20))
    model = seeded()
    assert adapt(model, LoraConfig(rank=2, targets=("query", "value"))) == [
        f"blocks.{layer}.attention.{name}" for layer in (0, 1) for name in ("query", "value")
    ]
    with pytest.raises(AdapterError, match="already has adapters"):
        adapt(model, RANK_2)


def test_the_first_matrix_starts_as_a_linear_layer_does():
    model = seeded()
    adapt(model, LoraConfig(rank=8))
    start = model.blocks[0].up.parametrizations.weight[0].lora_a
    assert start.abs().max() <= 1 / math.sqrt(32) and start.std().item() == pytest.approx(1 / math.sqrt(96), rel=0.1)


def test_a_model_with_experts_wants_its_targets_named():
    config = ModelConfig(
        vocab_size=30,
        width=16,
        layers=2,
        heads=2,
        kv_heads=1,
        ffn_width=24,
        context=16,
        moe=MoE(experts=4, chosen=2, expert_width=8),
    )
    with pytest.raises(AdapterError, match=r"experts, which have no adapters here.*query"):
        adapt(Transformer(config), LoraConfig(rank=2))
    assert adapt(Transformer(config), LoraConfig(rank=2, targets=("query", "value"))) == [
        f"blocks.{layer}.attention.{name}" for layer in (0, 1) for name in ("query", "value")
    ]
