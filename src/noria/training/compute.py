"""How a model computes while it trains: bf16 products, compiled blocks, recomputed activations. Applied from outside.

The weights, their gradients and the optimiser stay in fp32, and what is not differentiated (evaluations, sampling)
computes as ever; unless `bf16_weights.py` keeps them in bf16, of which products can only be made in bf16.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx.experimental import _config as fx_config
from torch.utils.checkpoint import checkpoint

from noria.model import Transformer
from noria.training.bf16_weights import has_bf16_weights

Precision = Literal["float32", "bfloat16"]
MOST_KINDS = 128  # compilations of one function: by masks, sizes of 1, and layers where attention residuals differ

# Of queries in bf16 and norms in fp32: PyTorch warns that its fused norm can't mix them, and uses the plain one.
warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")


@contextmanager
def computing(
    model: Transformer, precision: Precision, *, compiled: bool, recompute_activations: bool
) -> Iterator[None]:
    """Within it, passes of `model.hidden` that are differentiated compute as asked.

    bfloat16: products in bf16 from weights rounded for each use (autocast); the residual stream, norms, softmax and the
    loss's statistics in fp32. Blocks are compiled one by one: they share one compilation, and nothing outside them
    costs much. There is one a kind of mask, for rows of any number and length but 1: others for other shapes would
    round in another order, and bits would depend on which shapes came first. Recomputing keeps only each block's
    input: about a third more products, most of the memory saved.
    Raises ValueError where there is no compiler.
    """
    if compiled:
        check_compiler()
    plain: Callable[..., Tensor] = model.hidden
    was_patched = "hidden" in vars(model)

    def hidden(tokens_BT: Tensor, *others: Any, **named: Any) -> Tensor:
        if not torch.is_grad_enabled() or named.get("cache") is not None:
            # Whatever the caller computes in stays as it is where weights are in fp32.
            mixed = torch.autocast(tokens_BT.device.type, torch.bfloat16) if needs_autocast else nullcontext()
            with mixed:
                return plain(tokens_BT, *others, **named)
        with _blocks(model, forwards), torch.autocast(tokens_BT.device.type, torch.bfloat16, enabled=is_low):
            states = plain(tokens_BT, *others, **named)
        return states.to(torch.bfloat16) if is_low else states

    is_low = precision == "bfloat16"
    needs_autocast = has_bf16_weights(model)
    if not (is_low or compiled or recompute_activations):
        yield
        return
    forwards = [_forward(block, compiled, recompute_activations) for block in model.blocks]
    hidden.is_compiled = compiled  # type: ignore[attr-defined]
    model.hidden = hidden  # type: ignore[method-assign]
    try:
        with _any_shape() if compiled else nullcontext():
            yield
    finally:
        if was_patched:
            model.hidden = plain  # type: ignore[method-assign]
        else:
            del model.hidden


@contextmanager
def _any_shape() -> Iterator[None]:
    """Sizes that are equal when something is compiled are not taken to be so forever; and what has too many kinds to be
    compiled is an error, where it would compute uncompiled, with other bits, from then on."""
    limits = {"recompile_limit": MOST_KINDS, "fail_on_recompile_limit_hit": True}
    with fx_config.patch(use_duck_shape=False), torch._dynamo.config.patch(limits):  # type: ignore[attr-defined]
        yield


def is_compiled(model: Transformer) -> bool:
    """Whether the model is within `computing` with compilation: the loss then compiles its passes over logits too."""
    return getattr(model.hidden, "is_compiled", False)


def check_compiler() -> None:
    """Raises ValueError, saying what to do, where `torch.compile` has no C++ compiler to call (CPU)."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ValueError(
            "compile = true needs a C++ compiler, and none was found: install g++ (apt install g++) or clang, name one "
            "in the environment variable CXX, or set compile = false"
        ) from error


def _forward(block: torch.nn.Module, compiled: bool, recompute_activations: bool) -> Callable[..., Any]:
    forward = torch.compile(block.forward, dynamic=True) if compiled else block.forward
    return partial(checkpoint, forward, use_reentrant=False) if recompute_activations else forward


@contextmanager
def _blocks(model: Transformer, forwards: list[Callable[..., Any]]) -> Iterator[None]:
    """Blocks call `forwards` in place of their own forward."""
    for block, forward in zip(model.blocks, forwards, strict=True):
        block.forward = forward
    try:
        yield
    finally:
        for block in model.blocks:
            del block.forward
