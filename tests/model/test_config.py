"""What a shape costs: counts against the built model and a counted trace."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from noria.model import ModelConfig, Transformer

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


@pytest.mark.slow  # the first use of torch's counter takes seconds
@pytest.mark.parametrize("shape", SHAPES)
def test_flops_are_those_of_a_counted_trace_less_the_half_of_attention_that_the_mask_removes(shape):
    """The counter counts attention's products over the full T x T square; the formula counts the causal half.

    So counted = formula + that other half, 6*L*D*T a token. What neither counts: norms, rotations, softmax, look-ups.
    """
    rows, length = 2, 64
    config = ModelConfig(vocab_size=100, context=length, **shape)
    tokens = torch.randint(0, 100, (rows, length))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        Transformer(config)(tokens).sum().backward()
    other_half = 6.0 * config.layers * config.width * length
    expected = rows * length * (config.flops_per_token() + other_half)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


def test_flops_follow_the_length_that_is_trained_on():
    config = ModelConfig(vocab_size=100, context=64, **SHAPES[0])
    assert config.flops_per_token(64) == config.flops_per_token()
    assert config.flops_per_token(64) - config.flops_per_token(32) == 6 * config.layers * config.width * 32


def test_the_cache_costs_what_the_engine_allocates():
    from noria.inference.cache import RowCache

    config = ModelConfig(vocab_size=100, context=64, **SHAPES[0])
    cache = RowCache(config, rows=3, context=10)
    allocated = 4 * sum(store.numel() for store in cache.states_LRGSd.values())
    assert allocated == 3 * 10 * config.cache_bytes_per_token()


@pytest.mark.parametrize("change", [{"heads": 5}, {"kv_heads": 3}, {"width": 0}, {"heads": 32}, {"depth": 3}])
def test_shapes_that_cannot_be_are_refused(change):
    with pytest.raises(ValueError):
        ModelConfig(**{"vocab_size": 9, "context": 8, **SHAPES[0], **change})
