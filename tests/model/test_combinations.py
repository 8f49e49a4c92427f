"""Options drawn at random and put together: what holds for each alone holds for any that may be combined."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from noria.model import ModelConfig, accounting
from noria.planning import training_bytes
from tests.model.naive import naive_logits
from tests.model.options import random_tokens, randomised
from tests.model.row_cache import RowCache
from tests.planning.test_memory import saved_bytes

CHOICES = {
    "layers": (1, 2, 3),
    "heads": (1, 2, 4),
    "kv_heads": (1, 2, 4),
    "tied": (True, False),
    "qk_norm": (True, False),
    "activation": ("squared_relu", "swiglu", "geglu"),
    "post_norm": (True, False),
    "embedding_scale": (1.0, 2.0),
    "attention_scale": (None, 0.3),
    "attention_gate": (None, None, "head", "element"),
    "forget_gate": (True, False),
    "attention_soft_cap": (None, None, 3.0),
    "logit_soft_cap": (None, 4.0),
    "nope_every": (0, 0, 1, 2),
    "qkv_bias": (True, False),
    "explicit_head_width": (None, 12),
    "attention_residuals": (None, 1, 2, 3),
    "local": (None, {"window": 1}, {"window": 3, "global_every": 2, "rope_base": 50.0}),
    "rope_scaling": (None, {"kind": "linear", "factor": 3.0}),
    "mla": (None, None, {"query_rank": 9}, {}),
    "moe": (None, {"score": "softmax", "normalise": False}, {"shared": 2}, {"first_dense": 1}),
}
MLA = {"kv_rank": 12, "nope_width": 6, "rope_width": 4}


def draw(seed: int) -> ModelConfig:
    """The first draw of this seed that the configuration accepts."""
    dice = random.Random(seed)
    while True:
        chosen = {name: dice.choice(values) for name, values in CHOICES.items()}
        if chosen["mla"] is not None:
            chosen["mla"] = {**MLA, "value_width": dice.choice((5, 10)), **chosen["mla"]}
            chosen |= {"kv_heads": chosen["heads"], "qk_norm": False, "qkv_bias": False, "nope_every": 0}
            chosen["explicit_head_width"] = None
        if chosen["moe"]:
            chosen["moe"] = {"experts": 5, "chosen": dice.choice((1, 2, 5)), "expert_width": 11, **chosen["moe"]}
        try:
            return ModelConfig(vocab_size=53, width=40, ffn_width=56, context=64, **chosen)
        except ValueError:
            continue


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_a_random_combination_is_the_formula_is_cached_and_costs_what_is_predicted(seed):
    config = draw(seed)
    model, tokens = randomised(config), random_tokens(config, 3, 11)
    close = {"atol": 1e-4, "rtol": 1e-3}
    with torch.no_grad():
        torch.testing.assert_close(
            model(tokens)[0], naive_logits(config, model.state_dict(), tokens[0].tolist()), **close
        )
        cache, states = RowCache(config, rows=5), []
        for positions in (range(6), *((t,) for t in range(6, 11))):
            positions_BT = torch.tensor(list(positions)).expand(3, -1)
            view = cache.view(1, positions_BT)
            states.append(model.hidden(tokens[:, positions_BT[0]], positions_BT, cache=view, mask=view.mask()))
        torch.testing.assert_close(torch.cat(states, 1), model.hidden(tokens), **close)

    assert config.parameters() == sum(parameter.numel() for parameter in model.parameters())
    rows, length = 2, 48
    tokens, segment = random_tokens(config, rows, length), (torch.arange(length) // 9).expand(rows, -1).contiguous()
    predicted = training_bytes(config, rows, length)
    held = predicted.activations + predicted.logits - rows * length * config.vocab_size * 4
    assert held == pytest.approx(saved_bytes(model.train(), tokens, segment), rel=0.01)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens).sum().backward()
    flops = rows * length * accounting.flops_per_token(config, length, skip_masked=False)
    assert counter.get_total_flops() == pytest.approx(flops, rel=0.01)
