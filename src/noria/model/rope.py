"""Rotary positions and the ways to stretch them to a longer context.

B batch, T time, H heads, d rotated width of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from noria.model.config import RopeScaling


def rotary_angles(
    positions_BT: Tensor, head_width: int, base: float, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine and sine (B, 1, T, d/2) of rotary position embedding (RoFormer, arXiv 2104.09864, eq. 15)."""
    frequency = base ** (-torch.arange(0, head_width, 2, device=positions_BT.device, dtype=torch.float32) / head_width)
    factor = 1.0
    if scaling is not None:
        frequency, factor = SCALINGS[scaling.kind](frequency, base, scaling)
    angle_BTd = positions_BT.float()[..., None] * frequency
    cos, sin = angle_BTd.cos()[:, None], angle_BTd.sin()[:, None]
    return (cos, sin) if factor == 1.0 else (cos * factor, sin * factor)


def rotate(x_BHTd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + d/2) of each head by its position's angle; the layout of Llama's `rotate_half`."""
    first, second = x_BHTd.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _linear(frequency: Tensor, base: float, scaling: RopeScaling) -> tuple[Tensor, float]:
    """Position interpolation (arXiv 2306.15595): positions shrink by the factor."""
    return frequency / scaling.factor, 1.0


def _yarn(frequency: Tensor, base: float, scaling: RopeScaling) -> tuple[Tensor, float]:
    """YaRN (arXiv 2309.00071, section 3.2 and eq. 22): slow frequencies are divided, fast ones kept, a ramp between.

    The ramp runs over the index of the frequency, from the one that turns `beta_fast` times in the original context to
    the one that turns `beta_slow` times, rounded outwards as in the authors' code. Scores are to grow by
    (0.1 ln s + 1)^2; multiplying cosine and sine by the root does that to q.k.
    """
    assert scaling.original_context is not None
    pairs = frequency.numel()

    def index_that_turns(times: float) -> float:
        return pairs * math.log(scaling.original_context / (times * 2 * math.pi)) / math.log(base)  # type: ignore[operator]

    low = max(math.floor(index_that_turns(scaling.beta_fast)), 0)
    high = min(math.ceil(index_that_turns(scaling.beta_slow)), 2 * pairs - 1)
    ramp = (torch.arange(pairs, device=frequency.device, dtype=torch.float32) - low) / max(high - low, 1e-3)
    ramp = ramp.clamp(0, 1)
    factor = scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1.0
    return frequency / scaling.factor * ramp + frequency * (1 - ramp), factor


def _llama3(frequency: Tensor, base: float, scaling: RopeScaling) -> tuple[Tensor, float]:
    """Llama 3.1: wavelengths beyond original/low are divided by the factor, those below original/high kept, and between
    the two the share kept grows linearly with the turns in the original context (as published with its weights)."""
    assert scaling.original_context is not None
    turns = scaling.original_context * frequency / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequency / scaling.factor * (1 - kept) + frequency * kept, 1.0


SCALINGS = {"linear": _linear, "yarn": _yarn, "llama3": _llama3}
