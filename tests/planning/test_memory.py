"""Predicted memory against what a step holds: the tensors saved for the backward pass, the optimiser's state."""

from __future__ import annotations

import pytest
import torch

from noria.model import Transformer
from noria.planning import training_bytes
from noria.training.bf16_weights import weights_in
from noria.training.optim import MuonAdamW
from tests.model.options import OPTIONS, option, random_tokens

# Widths that differ from each other, so that one cannot stand in for another.
WIDTHS = {"width": 40, "ffn_width": 56, "vocab_size": 53}


def widened(name: str, **changes):
    return option(name, **{**{key: value for key, value in WIDTHS.items() if key not in OPTIONS[name]}, **changes})


def saved_bytes(model: Transformer, tokens: torch.Tensor, segment: torch.Tensor) -> int:
    """Bytes of all storages that the backward pass of a cross-entropy needs, but for the model's own."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logprobs = model.logits(model.hidden(tokens, segment_BT=segment)).log_softmax(-1)
    assert logprobs.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("length", [16, 48])
@pytest.mark.parametrize("name", OPTIONS)
def test_activations_of_every_option_are_those_that_autograd_saves(name, length):
    rows, config = 3, widened(name)
    segment = (torch.arange(length) // 8).expand(rows, -1).contiguous()
    saved = saved_bytes(Transformer(config).train(), random_tokens(config, rows, length), segment)
    predicted = training_bytes(config, rows, length)
    # The logits themselves are freed once the log-probabilities exist: one tensor (tokens, V) less is saved.
    held = predicted.logits - rows * length * config.vocab_size * 4
    assert predicted.activations + held == pytest.approx(saved, rel=0.01)


def all_gradients(model: Transformer) -> list[torch.Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("muon", [True, False])
@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", OPTIONS)
def test_weights_gradients_and_optimiser_state_of_every_option_are_those_of_a_step(name, kept, muon):
    config = option(name)
    model = Transformer(config)
    with weights_in(model, kept):
        optimiser = MuonAdamW(model, 1e-3, muon=muon)
        with torch.autocast("cpu", torch.bfloat16, enabled=kept == "bfloat16"):
            model(random_tokens(config, 2, 8)).sum().backward()
        optimiser.step()
        state = [t for own in optimiser.state.values() for t in own.values() if isinstance(t, torch.Tensor)]
        weights, gradients = (sum(t.nbytes for t in each) for each in (model.parameters(), all_gradients(model)))
    predicted = training_bytes(config, rows=1, bytes_per_weight=4 if kept == "float32" else 2, muon=muon)
    assert predicted.weights == weights and predicted.gradients == gradients
    assert predicted.optimiser == pytest.approx(sum(t.nbytes for t in state), rel=0.01)
