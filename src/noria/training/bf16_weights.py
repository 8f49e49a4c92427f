"""Weights kept in bf16 while they are trained: half the memory of matrices, their gradients and moments.

What is summed over many terms is summed in fp32 and rounded once: the gradient of the embedding over a batch's tokens,
that of the head over chunks of targets. Sums over micro-batches are in bf16: few and large ones lose less.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from noria.model import Transformer
from noria.training.parallel import ALONE, Ranks

# Parts of a parameter's name that keep it in fp32: adapters are small, and a critic computes outside autocast.
APART = {"critic", "lora_a", "lora_b"}


@contextmanager
def weights_in(model: Transformer, precision: str, ranks: Ranks = ALONE) -> Iterator[None]:
    """Within it, the matrices that are trained lie in `precision`, float32 or bfloat16; after it, in fp32 again.

    Vectors (norms, biases), adapters, critics and what is frozen stay in fp32. Raises ValueError on several ranks.
    """
    if precision == "float32":
        yield
        return
    if ranks.count > 1:
        raise ValueError('weight_precision = "bfloat16" trains in one process only: leave it out on several ranks')
    matrices = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2 and parameter.requires_grad and not APART & set(name.split("."))
    ]
    embedding, head = model.embedding, model.head
    try:
        for parameter in matrices:
            parameter.data, parameter.grad = parameter.data.to(torch.bfloat16), None
        if embedding.weight.dtype == torch.bfloat16:
            embedding.forward = lambda index: _Rows.apply(embedding.weight, index)  # type: ignore
        if head.weight.dtype == torch.bfloat16:
            head.forward = lambda hidden: F.linear(hidden, head.weight.to(hidden.dtype))  # type: ignore
        yield
    finally:
        for module in (embedding, head):
            vars(module).pop("forward", None)
        for parameter in matrices:
            parameter.data, parameter.grad = parameter.data.float(), None


def has_bf16_weights(model: Transformer) -> bool:
    """Whether matrices in bf16 meet states in fp32, which only autocast multiplies."""
    return any(parameter.dtype == torch.bfloat16 for parameter in model.parameters())


class _Rows(torch.autograd.Function):
    """Rows of a table, in fp32. Added up in bf16, a token's gradients would stop counting at 256 of a size."""

    @staticmethod
    def forward(ctx: Any, table_VD: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.table = table_VD.shape, table_VD.dtype
        return F.embedding(index, table_VD).float()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        (index,), (shape, dtype) = ctx.saved_tensors, ctx.table
        sums_VD = slope.new_zeros(shape)
        sums_VD.index_add_(0, index.flatten(), slope.flatten(0, -2))
        return sums_VD.to(dtype), None
