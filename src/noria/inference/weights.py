"""The engine's own copy of a model's matrices, laid out for multiplying.

Packed once by oneDNN for its kernels: on a processor where PyTorch's fp32 product goes to MKL's generic path (AMD) the
packed one is 2.5 times faster, and in bf16 a few rows cost half. Packed products also give a row the same bits
whatever rows stand beside it, which plain ones do not; one row alone is the exception, so it is computed as two.

M tokens of any shape, I inputs, O outputs.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noria.model import Transformer
from noria.model.moe import MixtureOfExperts

Precision = Literal["float32", "bfloat16"]
PACKED_FOR_ROWS = 64  # the layout that oneDNN chooses for so many rows gives the same bits for 2 rows and for 512


class PackedLinear(nn.Module):
    """A linear layer with its weight packed in `dtype`, computing in it and answering in it.

    `weight` and `bias` stay those of the layer that it stands for, for whoever needs the matrix itself.
    """

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.dtype, self.outputs = dtype, layer.out_features
        self._bias = None if layer.bias is None else layer.bias.detach().to(dtype)
        self._packed = pack(layer.weight, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return multiply(x.to(self.dtype).reshape(-1, x.shape[-1]), self._packed, self._bias).view(
            *x.shape[:-1], self.outputs
        )


def pack(weight_OI: Tensor, dtype: torch.dtype) -> Tensor:
    """An opaque tensor for `multiply`."""
    return torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach().to(dtype).contiguous(), PACKED_FOR_ROWS)


# oneDNN keeps a compiled product for every number of rows it meets, hundreds of kilobytes each: prompts of all lengths
# would fill memory. Beyond so many rows their number is rounded up to a multiple of it.
ROW_STEP = 64


def multiply(x_MI: Tensor, packed: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x W^T + b (M, O); a row's bits do not depend on M."""
    if x_MI.shape[0] == 1:
        return torch.ops.mkldnn._linear_pointwise(x_MI.expand(2, -1), packed, bias_O, "none", [], "")[:1]
    rows = len(x_MI)
    if rows > ROW_STEP and rows % ROW_STEP:
        x_MI = F.pad(x_MI, (0, 0, 0, -rows % ROW_STEP))
    return torch.ops.mkldnn._linear_pointwise(x_MI, packed, bias_O, "none", [], "")[:rows]


def prepared(model: Transformer, precision: Precision) -> Transformer:
    """A twin of `model` that shares its parameters except that every `nn.Linear` is packed, the head in fp32.

    Layers of another type (kept in int8, with an adapter) stay as they are.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    dtype = getattr(torch, precision)
    for path, module in list(twin.named_modules()):
        if isinstance(module, MixtureOfExperts) and dtype != torch.float32:
            for name in ("gate", "up", "down"):
                if (matrix := getattr(module, name)) is not None:
                    setattr(module, name, nn.Parameter(matrix.detach().to(dtype), requires_grad=False))
        if type(module) is not nn.Linear or path.endswith("router"):
            continue
        parent, _, leaf = path.rpartition(".")
        setattr(twin.get_submodule(parent), leaf, PackedLinear(module, torch.float32 if path == "head" else dtype))
    return twin.eval()


def fingerprint(model: Transformer) -> tuple[tuple[int, int], ...]:
    """Changes whenever a parameter is written in place or replaced (unless through `.data`, which leaves no trace)."""
    return tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters())
