"""Weights in 8 and 4 bits: integers with a scale, and back.

R rows (outputs), C columns (inputs), N groups of 32 columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 127  # int8: -127..127
GROUP = 32  # columns that share a scale in int4


def quantise_rows(weight_RC: Tensor) -> tuple[Tensor, Tensor]:
    """Int8: (int8 (R, C), fp32 scale (R,)), q = round(w / s), s = max|w_row| / 127, so that |w - s q| <= s / 2.

    A row of zeros has scale 1. Raises ValueError on a weight that is not finite.
    """
    weight_RC = _finite(weight_RC)
    scale_R = _scale(weight_RC, LEVELS)
    return (weight_RC / scale_R[:, None]).round().clamp(-LEVELS, LEVELS).to(torch.int8), scale_R


def restore_rows(values_RC: Tensor, scale_R: Tensor) -> Tensor:
    """The fp32 matrix (R, C) that `quantise_rows` stands for."""
    return values_RC.to(torch.float32) * scale_R[:, None]


def quantise_groups(weight_RC: Tensor) -> tuple[Tensor, Tensor]:
    """Int4: (uint8 (R, C/2), fp32 scale (R, N)), q = round(w / s) + 8 in 1..15, s = max|w_group| / 7.

    A byte holds two neighbours, the first in its low half. Raises ValueError where C is no multiple of 32, and on a
    weight that is not finite.
    """
    rows, columns = weight_RC.shape
    if columns % GROUP:
        raise ValueError(f"int4 needs a multiple of {GROUP} columns, not {columns}")
    weight_RNG = _finite(weight_RC).view(rows, -1, GROUP)
    scale_RN = _scale(weight_RNG, 7)
    level_RNG = ((weight_RNG / scale_RN[..., None]).round().clamp(-7, 7) + 8).to(torch.uint8)
    return level_RNG.view(rows, -1)[:, ::2] | level_RNG.view(rows, -1)[:, 1::2] << 4, scale_RN


def restore_groups(packed: Tensor, scale_RN: Tensor) -> Tensor:
    """The fp32 matrix (R, C) that `quantise_groups` stands for."""
    level_RC = torch.stack((packed & 15, packed >> 4), -1).flatten(1).float() - 8
    return (level_RC.view(*scale_RN.shape, GROUP) * scale_RN[..., None]).flatten(1)


def _finite(weight: Tensor) -> Tensor:
    if not torch.isfinite(weight).all():
        raise ValueError("holds values that are not finite; it can't be quantised")
    return weight.float().contiguous()


def _scale(weight: Tensor, levels: int) -> Tensor:
    # Below fp32's smallest normal number a quotient would be no number any more.
    scale = weight.abs().amax(-1) / levels
    return torch.where(scale >= torch.finfo(torch.float32).tiny, scale, 1.0)
