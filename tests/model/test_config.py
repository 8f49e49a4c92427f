"""What a shape costs: counts against the built model and a counted trace."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from noria.inference.cache import BLOCK, PagedCache
from noria.model import ModelConfig, Transformer, accounting
from noria.model.masks import windowed
from tests.model.options import OPTIONS, option, random_tokens

SHAPES = [
    {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_width": 64},
    {"width": 48, "layers": 1, "heads": 3, "kv_heads": 3, "ffn_width": 40},
    {"width": 16, "layers": 3, "heads": 2, "kv_heads": 1, "ffn_width": 100},
]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_are_those_of_the_built_model(shape, qk_norm, tied):
    config = ModelConfig(vocab_size=77, context=16, qk_norm=qk_norm, tied=tied, **shape)
    assert config.parameters() == sum(parameter.numel() for parameter in Transformer(config).parameters())


@pytest.mark.parametrize("name", OPTIONS)
def test_parameters_of_every_option_are_those_of_the_built_model(name):
    config = option(name)
    assert config.parameters() == sum(parameter.numel() for parameter in Transformer(config).parameters())


@pytest.mark.slow  # the first use of torch's counter takes seconds
@pytest.mark.parametrize("name", OPTIONS)
def test_flops_of_every_option_are_those_of_a_counted_trace(name):
    """The counter counts attention's products over the full T x T square, so they are compared without skipping; what a
    mask leaves of them is counted in the next test. What neither counts: norms, rotations, softmax, look-ups."""
    rows, length = 2, 64
    config = option(name, context=length)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        Transformer(config)(random_tokens(config, rows, length)).sum().backward()
    expected = rows * length * accounting.flops_per_token(config, length, skip_masked=False)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("window", [None, 1, 5, 63, 64, 100])
def test_the_keys_that_a_query_sees_are_counted_from_the_mask(window):
    """Half a token aside: a query sees itself too, so a causal square holds T(T+1)/2 keys, not T^2/2."""
    index = torch.arange(64)[None]
    mask = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()
    mask = mask if window is None else windowed(mask, index, window)
    counted = mask.sum().item() / 64
    assert accounting.visible(64, window) == pytest.approx(counted, abs=0.51)


def test_experts_that_a_token_does_not_visit_are_parameters_but_no_flops():
    few, many = (option("experts", moe={"experts": n, "chosen": 2, "expert_width": 16}) for n in (4, 64))
    assert many.parameters() > 3 * few.parameters()
    routers = 60 * few.width * few.layers
    assert many.matmul_parameters() - few.matmul_parameters() == routers
    assert many.flops_per_token() - few.flops_per_token() == 6 * routers


def test_flops_follow_the_length_that_is_trained_on():
    config = ModelConfig(vocab_size=100, context=64, **SHAPES[0])
    assert config.flops_per_token(64) == config.flops_per_token()
    assert config.flops_per_token(64) - config.flops_per_token(32) == 6 * config.layers * config.width * 32


@pytest.mark.parametrize("name", OPTIONS)
def test_the_cache_costs_what_the_engine_allocates(name):
    config = option(name)
    cache = PagedCache(config, blocks=3)
    allocated = sum(store.nbytes for store in cache.states_LSGd.values())
    assert allocated == 3 * BLOCK * config.cache_bytes_per_token()


def test_a_latent_is_smaller_than_the_keys_and_values_that_are_made_from_it():
    config = option("mla")
    assert config.cache_bytes_per_token() == config.layers * (12 + 4) * 4 < option("none").cache_bytes_per_token()


@pytest.mark.parametrize("change", [{"heads": 5}, {"kv_heads": 3}, {"width": 0}, {"heads": 32}, {"depth": 3}])
def test_shapes_that_cannot_be_are_refused(change):
    with pytest.raises(ValueError):
        ModelConfig(**{"vocab_size": 9, "context": 8, **SHAPES[0], **change})
