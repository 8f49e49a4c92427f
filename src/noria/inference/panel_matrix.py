"""A matrix kept in 32, 16, 8 or 4 bits, laid out for the kernel of `native/panels.h`.

M rows of x, I inputs (padded to a multiple of 32), O outputs (padded to panels of 32), P panels.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from noria.inference.native import kernels
from noria.model.quantised import GROUP, quantise_groups, quantise_rows, restore_groups, restore_rows

Bits = Literal[32, 16, 8, 4]
PANEL, HALF = 32, 16


class PanelMatrix:
    """(O, I) in fp32, rounded to bf16, or as `model/quantised.py` quantises it: then not finite weights raise
    ValueError."""

    def __init__(self, weight_OI: Tensor, bits: Bits) -> None:
        self.bits, (self.outputs, self.inputs) = bits, weight_OI.shape
        # Zeros beside the matrix change no scale and add nothing to a product.
        padded = weight_OI.detach().to(torch.bfloat16 if bits == 16 else torch.float32)
        if self.inputs % GROUP or self.outputs % PANEL:
            padded = F.pad(padded, (0, -self.inputs % GROUP, 0, -self.outputs % PANEL))
        panels = len(padded) // PANEL
        if bits == 32:
            self.values = padded.reshape(panels, PANEL, -1).mT.contiguous()  # (P, I, 32)
            self.scale = padded.new_empty(panels, 0, PANEL)
            return
        if bits == 16:
            values, scale = padded.contiguous().view(torch.int32), torch.empty(len(padded), 0)
        else:
            values, scale = quantise_rows(padded) if bits == 8 else quantise_groups(padded)
        pairs = padded.shape[1] // 2
        by_output = values.view(panels, 2, HALF, pairs, values.shape[1] // pairs)
        self.values = by_output.permute(0, 3, 1, 4, 2).contiguous()  # (P, I/2, 2, numbers kept of a pair, 16)
        scales = scale.numel() // len(padded)
        self.scale = scale.view(panels, PANEL, scales).mT.contiguous()  # (P, scales of an output, 32)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scale.nbytes

    def rows(self, index: Tensor) -> Tensor:
        """Those rows of the matrix, (..., I) in fp32."""
        flat = index.flatten()
        panel, lane = flat // PANEL, flat % PANEL
        if self.bits == 32:
            restored = self.values[panel, :, lane]
        else:
            values = self.values[panel, :, lane // HALF, :, lane % HALF].flatten(1)
            scale = self.scale[panel, :, lane]
            if self.bits == 16:
                restored = values.view(torch.bfloat16).float()
            else:
                restored = restore_rows(values, scale[:, 0]) if self.bits == 8 else restore_groups(values, scale)
        return restored[:, : self.inputs].contiguous().view(*index.shape, self.inputs)

    def restored(self) -> Tensor:
        """The whole matrix, (O, I) in fp32."""
        return self.rows(torch.arange(self.outputs))

    def multiply(self, x_MI: Tensor) -> Tensor:
        """x W^T (M, O) in the dtype of x, bf16 (not in 32 bits) or fp32, by the kernel: a row's bits do not depend on
        M."""
        native = kernels()
        assert native is not None and (self.bits != 32 or x_MI.dtype == torch.float32)
        if self.inputs % GROUP:
            x_MI = F.pad(x_MI, (0, -self.inputs % GROUP))
        native.set_threads(torch.get_num_threads())
        return native.multiply(x_MI.contiguous(), self.values, self.scale, self.outputs, self.bits)
