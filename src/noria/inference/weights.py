"""The engine's own copy of a model's matrices, laid out for multiplying.

Our own kernel multiplies (`native/panels.h`). Beside the packed products of oneDNN it is twice as fast for one row and
as fast for 64, a tenth slower there in fp32 (docs/results.md); it takes any number of rows as it is, where oneDNN
compiles a product for each, and it multiplies where oneDNN can't: quantised weights, and bf16 on x86 without AVX-512.
oneDNN's are used where no kernel could be compiled, without AVX2, and in bf16 with AMX tiles: PyTorch's plain products
go to MKL's generic path on AMD. Both give a row the same bits whatever rows stand beside it, which plain products do
not; one row alone is an exception of oneDNN's, so it is computed as two.

M tokens of any shape, I inputs, O outputs, E experts.
"""

from __future__ import annotations

import copy
import ctypes
import platform
from collections.abc import Iterable, Mapping
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noria.inference.native import kernels
from noria.inference.panel_matrix import Bits, PanelMatrix
from noria.model import Transformer
from noria.model.moe import MixtureOfExperts

# int8 and int4 are of the weights alone: products are summed in fp32 over activations in bf16. The embedding and the
# head keep 8 bits in int4 too, as llama.cpp's 4-bit mixtures do: what is lost there reaches the logits at once.
Precision = Literal["float32", "bfloat16", "int8", "int4"]
_BITS: Mapping[Precision, Bits] = {"int8": 8, "int4": 4}
TABLE_BITS: Bits = 8
PACKED_FOR_ROWS = 64  # the layout that oneDNN chooses for so many rows gives the same bits for 2 rows and for 512

Matrix = Tensor | PanelMatrix


def compute_dtype(precision: Precision) -> torch.dtype:
    """Of activations and of the cache."""
    return torch.float32 if precision == "float32" else torch.bfloat16


def bits_of(precision: Precision) -> Bits | None:
    """Of a layer's weights where they are quantised."""
    return _BITS.get(precision)


class PackedLinear(nn.Module):
    """A linear layer with its weight packed, computing in `dtype` and answering in it.

    `keep_weight`: also keep the matrix that the products are with as `weight`, for whoever multiplies with parts of it.
    """

    def __init__(
        self, layer: nn.Linear, dtype: torch.dtype, bits: Bits | None = None, keep_weight: bool = False
    ) -> None:
        super().__init__()
        self.dtype, self.outputs = dtype, layer.out_features
        self.bias = None if layer.bias is None else layer.bias.detach().to(dtype)
        self.packed = pack(layer.weight, dtype, bits)
        if keep_weight:
            is_changed = isinstance(self.packed, PanelMatrix) and self.packed.bits < 16
            kept = cast(PanelMatrix, self.packed).restored() if is_changed else layer.weight
            self.weight = kept.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return multiply(x.to(self.dtype).reshape(-1, x.shape[-1]), self.packed, self.bias).view(
            *x.shape[:-1], self.outputs
        )


class PackedEmbedding(nn.Module):
    """Rows of a quantised table, in fp32."""

    def __init__(self, table: PanelMatrix) -> None:
        super().__init__()
        self.packed = table

    def forward(self, index: Tensor) -> Tensor:
        return self.packed.rows(index)


class PackedExperts(nn.Module):
    """The panels of the matrices (E, O, I) of a mixture of experts; stands for its stack in `model/moe.py`."""

    def __init__(self, weight_EOI: Tensor, dtype: torch.dtype, bits: Bits) -> None:
        super().__init__()
        self.dtype = dtype
        self.packed = tuple(PanelMatrix(weight, bits) for weight in weight_EOI)

    def forward(self, x_MI: Tensor, load_E: Tensor) -> Tensor:
        """`by_expert`: rows sorted by expert, `load_E` of them each."""
        parts = zip(x_MI.to(self.dtype).split(load_E.tolist()), self.packed, strict=True)
        return torch.cat([multiply(part, matrix) for part, matrix in parts])


def pack(weight_OI: Tensor, dtype: torch.dtype, bits: Bits | None = None) -> Matrix:
    """For `multiply` with inputs in `dtype`: an opaque tensor or, where `panel_bits` says so, panels.

    Raises ValueError where a weight that is to be quantised is not finite.
    """
    if of_panel := panel_bits(dtype, bits):
        return PanelMatrix(weight_OI, of_panel)
    return torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach().to(dtype).contiguous(), PACKED_FOR_ROWS)


def panel_bits(dtype: torch.dtype, bits: Bits | None) -> Bits | None:
    """Of a matrix that our own kernel multiplies: None leaves it to oneDNN, which never has quantised ones."""
    if bits is not None:
        return bits
    is_low = dtype == torch.bfloat16
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    if kernels() is not None and wide and not (is_low and torch.cpu._is_amx_tile_supported()):
        return 16 if is_low else 32
    return 16 if is_low and not torch.ops.mkldnn._is_mkldnn_bf16_supported() else None


# oneDNN keeps a compiled product for every number of rows it meets, hundreds of kilobytes each: prompts of all lengths
# would fill memory. Beyond so many rows their number is rounded up to a multiple of it.
ROW_STEP = 64


def multiply(x_MI: Tensor, packed: Matrix, bias_O: Tensor | None = None) -> Tensor:
    """x W^T + b (M, O); a row's bits do not depend on M."""
    if isinstance(packed, PanelMatrix):
        y_MO = packed.multiply(x_MI) if kernels() is not None else _restored_product(x_MI, packed)
        return y_MO if bias_O is None else y_MO + bias_O
    if x_MI.shape[0] == 1:
        return torch.ops.mkldnn._linear_pointwise(x_MI.expand(2, -1), packed, bias_O, "none", [], "")[:1]
    rows = len(x_MI)
    if rows > ROW_STEP and rows % ROW_STEP:
        x_MI = F.pad(x_MI, (0, 0, 0, -rows % ROW_STEP))
    return torch.ops.mkldnn._linear_pointwise(x_MI, packed, bias_O, "none", [], "")[:rows]


def _restored_product(x_MI: Tensor, matrix: PanelMatrix) -> Tensor:
    """The twin of the kernel: slow, as the matrix is restored for every product, but in as little memory."""
    if not len(x_MI):
        return x_MI.new_empty(0, matrix.outputs)
    return multiply(x_MI.float(), pack(matrix.restored(), torch.float32)).to(x_MI.dtype)


def prepared(model: Transformer, precision: Precision, consume: bool = False) -> Transformer:
    """A twin of `model` that shares its parameters except that every `nn.Linear` is packed, the head for fp32.

    Layers with an adapter stay as they are, but for int8 and int4: then it is the adapted matrix that is quantised.
    So are experts and the embedding. Routers stay exact. `consume` as in `Engine`.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    dtype, bits = compute_dtype(precision), bits_of(precision)
    for path, module in list(twin.named_modules()):
        if isinstance(module, MixtureOfExperts) and dtype != torch.float32:
            _pack_experts(module, dtype, bits)
        if not (isinstance(module, nn.Linear) if bits else type(module) is nn.Linear) or path.endswith("router"):
            continue
        # One new token of latent attention is computed with parts of the matrix (`LatentAttention._attend_latents`).
        keep_weight = path.endswith("attention.kv") and model.config.mla is not None
        in_head = path == "head"
        packed = PackedLinear(
            module, torch.float32 if in_head else dtype, bits and (TABLE_BITS if in_head else bits), keep_weight
        )
        _put(twin, path, packed)
        if consume and module.weight is not twin.embedding.weight:
            give_up([module.weight])
    table = table_of(model, cast(PackedLinear, twin.head).packed, bits, consume)
    if isinstance(table, PanelMatrix):
        _put(twin, "embedding", PackedEmbedding(table))
    if consume:
        needed = {id(parameter) for parameter in twin.parameters()}
        give_up(parameter for parameter in model.parameters() if id(parameter) not in needed)
    return twin.eval()


def table_of(model: Transformer, head: Matrix, bits: Bits | None, consume: bool) -> Matrix:
    """The embedding, quantised or as it is; the head's panels where they are tied and nothing else need be kept."""
    if model.head.weight is model.embedding.weight and isinstance(head, PanelMatrix) and (bits or consume):
        return head
    return PanelMatrix(model.embedding.weight, TABLE_BITS) if bits else model.embedding.weight.detach()


def _pack_experts(module: MixtureOfExperts, dtype: torch.dtype, bits: Bits | None) -> None:
    for name in ("gate", "up", "down"):
        matrix = getattr(module, name)
        if matrix is None:
            continue
        if of_panel := panel_bits(dtype, bits):
            delattr(module, name)
            setattr(module, name, PackedExperts(matrix, dtype, of_panel))
        else:
            setattr(module, name, nn.Parameter(matrix.detach().to(dtype), requires_grad=False))


def _put(twin: Transformer, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(twin.get_submodule(parent), leaf, module)


def give_up(parameters: Iterable[nn.Parameter | Tensor]) -> None:
    """Leave nothing of them but their names: what else refers to their numbers keeps them."""
    for parameter in parameters:
        parameter.data = parameter.data.new_empty(0)


def return_memory() -> None:
    """Hand what was freed back to the system: glibc keeps pieces of its heap as small as a layer's matrix, which left
    2.4 times the memory that int8 weights take (SmolLM2's shape). Elsewhere it does nothing."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def fingerprint(model: Transformer) -> tuple[tuple[int, int], ...]:
    """Changes whenever a parameter is written in place or replaced (unless through `.data`, which leaves no trace)."""
    return tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters())
