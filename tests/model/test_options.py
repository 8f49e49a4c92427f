"""Each option against the formula that it stands for, packed, cached, and refused where it makes no sense."""

from __future__ import annotations

import pytest
import torch

from noria.deployment.quantize import quantise_folder
from noria.inference import Engine, Request, SamplingParams
from noria.model import ModelConfig, Transformer, load_model, save_model
from noria.model.quantised import quantise_rows, restore_rows
from tests.model.naive import naive_logits
from tests.model.options import MLA, OPTIONS, PLAIN, option, random_tokens, randomised
from tests.model.row_cache import RowCache

CLOSE = {"atol": 2e-5, "rtol": 2e-4}


@pytest.mark.parametrize(
    "name", [name if name == "none" else pytest.param(name, marks=pytest.mark.slow) for name in OPTIONS]
)
def test_logits_and_gradients_are_those_of_the_formula(name):
    config = option(name)
    model, tokens = randomised(config), random_tokens(config, 1, 9)
    weights = {
        n: t.clone().requires_grad_() for n, t in model.state_dict().items() if n != "head.weight" or not config.tied
    }
    found, expected = model(tokens)[0], naive_logits(config, weights, tokens[0].tolist())
    torch.testing.assert_close(found, expected, **CLOSE)
    probe = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (found * probe).sum().backward()
    (expected * probe).sum().backward()
    for name, parameter in model.named_parameters():
        wanted = weights[name].grad
        torch.testing.assert_close(
            parameter.grad, torch.zeros_like(parameter) if wanted is None else wanted, atol=1e-4, rtol=1e-3
        )


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in ("none", "norm eps", "untied")])
@torch.no_grad()
def test_an_option_that_is_on_changes_the_outcome(name):
    config, tokens = option(name), random_tokens(option(name), 1, 9)
    off = ModelConfig(**PLAIN)
    shared = randomised(config).state_dict()
    same_shapes = {n: t.shape for n, t in shared.items()} == {
        n: t.shape for n, t in Transformer(off).state_dict().items()
    }
    if same_shapes:
        plain = Transformer(off)
        plain.load_state_dict(shared)
        assert not torch.allclose(plain(tokens), randomised(config)(tokens), atol=1e-3)


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_decoding_with_a_cache_equals_the_whole_pass(name):
    config = option(name)
    model, tokens = randomised(config), random_tokens(config, 3, 11)
    cache = RowCache(config, rows=5)
    for store in cache.pages.states_LSGd.values():
        store.fill_(7.0)  # stale entries must not matter
    states = []
    for positions in (range(6), *((t,) for t in range(6, 10))):
        positions_BT = torch.tensor(list(positions)).expand(3, -1)
        view = cache.view(1, positions_BT)
        states.append(model.hidden(tokens[:, positions_BT[0]], positions_BT, cache=view, mask=view.mask()))
    torch.testing.assert_close(torch.cat(states, 1), model.hidden(tokens[:, :10]), **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_the_engine_gives_the_argmax_of_the_whole_pass_to_rows_of_unequal_length(name):
    config = option(name)
    model = randomised(config)
    prompts = [random_tokens(config, n, seed=n).tolist() for n in (2, 9, 5, 9)]
    prompts[3] = prompts[1]
    asked = [Request(prompt, SamplingParams(max_tokens=4 + n, temperature=0.0)) for n, prompt in enumerate(prompts)]
    for prompt, completion in zip(prompts, Engine(model, end_id=-1, max_rows=3).generate(asked), strict=True):
        ids = list(prompt)
        for token, logprob in zip(completion.token_ids, completion.logprobs, strict=True):
            expected = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
            assert expected.max().item() == pytest.approx(expected[token].item(), abs=1e-4)
            assert logprob == pytest.approx(expected[token].item(), abs=1e-3)
            ids.append(token)


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_packed_documents_have_the_logits_that_they_have_alone(name):
    config = option(name)
    model = randomised(config)
    documents = [random_tokens(config, 1, n, seed=n) for n in (3, 7, 1, 5)]
    segment = torch.cat([torch.full_like(tokens, index) for index, tokens in enumerate(documents)], 1)
    together = model(torch.cat(documents, 1), segment_BT=segment).split([d.shape[1] for d in documents], 1)
    for tokens, found in zip(documents, together, strict=True):
        torch.testing.assert_close(found, model(tokens), **CLOSE)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_trained_number_gets_a_gradient_and_a_new_model_is_finite(name):
    config = option(name)
    tokens = random_tokens(config, 2, 8)
    for model in (randomised(config).train(), Transformer(config)):
        model(tokens).log_softmax(-1)[..., 0].sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_a_folder_gives_the_same_model_back_and_its_int8_twin_that_of_the_restored_weights(name, tmp_path):
    config = option(name)
    model, tokens = randomised(config), random_tokens(config, 2, 9)
    (tmp_path / "source.json").write_text("{}")
    save_model(tmp_path / "model", model, tmp_path / "source.json")
    loaded = load_model(tmp_path / "model")
    assert loaded.config == config and torch.equal(loaded(tokens), model(tokens))
    quantise_folder(tmp_path / "model", tmp_path / "int8")
    state = model.state_dict().items()
    restored = {key: restore_rows(*quantise_rows(value)) if value.ndim == 2 else value for key, value in state}
    model.load_state_dict(restored)
    assert torch.equal(load_model(tmp_path / "int8")(tokens), model(tokens))
    assert not torch.equal(model(tokens), loaded(tokens))


def test_with_every_option_off_the_parameters_are_those_of_the_first_release():
    assert [name for name, _ in Transformer(ModelConfig(**{**PLAIN, "layers": 1})).named_parameters()] == [
        "embedding.weight",
        "blocks.0.attention_norm.weight",
        "blocks.0.attention.query.weight",
        "blocks.0.attention.key.weight",
        "blocks.0.attention.value.weight",
        "blocks.0.attention.output.weight",
        "blocks.0.attention.query_norm.weight",
        "blocks.0.attention.key_norm.weight",
        "blocks.0.ffn_norm.weight",
        "blocks.0.up.weight",
        "blocks.0.down.weight",
        "final_norm.weight",
    ]
    assert list(Transformer(ModelConfig(**PLAIN)).buffers()) == []


REFUSED = {
    "odd heads": ({"explicit_head_width": 7}, "must be even"),
    "yarn without its context": ({"rope_scaling": {"kind": "yarn", "factor": 2.0}}, "needs original_context"),
    "a ramp upside down": (
        {"rope_scaling": {"kind": "llama3", "factor": 2.0, "original_context": 8, "low_frequency_factor": 5.0}},
        "low_frequency_factor < high_frequency_factor",
    ),
    "scaling what does not turn": (
        {"nope_every": 1, "rope_scaling": {"kind": "linear", "factor": 2.0}},
        "remove rope_scaling",
    ),
    "capped and forgetting": ({"forget_gate": True, "attention_soft_cap": 1.0}, "remove attention_soft_cap or forget"),
    "no layer of experts": (
        {"moe": {"experts": 4, "chosen": 2, "expert_width": 8, "first_dense": 2}},
        "lower moe.first_dense",
    ),
    "more experts chosen than there are": (
        {"moe": {"experts": 4, "chosen": 5, "expert_width": 8}},
        "must not exceed moe.experts",
    ),
    "one block": ({"attention_residuals": 4}, "lower attention_residuals"),
    "latent and grouped": ({**MLA, "kv_heads": 2}, "set kv_heads equal to heads"),
    "latent with a norm": ({**MLA, "qk_norm": True}, "set qk_norm = false"),
    "latent with a head width": ({**MLA, "explicit_head_width": 8}, "remove explicit_head_width"),
    "latent with biases": ({**MLA, "qkv_bias": True}, "set qkv_bias = false"),
    "latent without position": ({**MLA, "nope_every": 2}, "set nope_every = 0"),
    "latent, odd": ({**MLA, "mla": {**MLA["mla"], "rope_width": 3}}, "mla.rope_width 3 must be even"),
    "an unknown option": ({"moe": {"experts": 4, "chosen": 2, "expert_width": 8, "capacity": 2}}, "capacity"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_combinations_that_make_no_sense_are_refused_with_what_to_change(name):
    changes, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{**PLAIN, **changes})
