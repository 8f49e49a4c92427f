"""Numbers computed in fp32, written to where they are kept: in fp32 as they are, in bf16 rounded at random."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

# Numbers in bf16 that are stepped at once on a CPU, in copies of 512 kB in fp32.
STEP_BLOCK = 1 << 17


def write_rounded(target: Tensor, value: Tensor, step: int) -> None:
    """Write numbers in fp32 to `target`; `value` is used up. Into bf16 they are rounded at random, without bias.

    The upper half of a fp32 number is a bf16 number: a random lower half is added, and what remains below is cut off.
    A step's random numbers are drawn once and serve every block and run: each weight sees other ones from step to step.
    """
    if target.dtype == torch.float32:
        target.copy_(value)  # where they are one tensor: marks it as written, by which an engine notices (fingerprint)
        return
    for place, part in zip(in_blocks(target), in_blocks(value.view(torch.int32)), strict=True):
        noise = _noise(step, part.device)
        noise = noise if part.numel() <= len(noise) else noise.repeat(-(-part.numel() // len(noise)))
        part.add_(noise[: part.numel()].view_as(part)).bitwise_and_(-1 << 16)
        place.copy_(part.view(torch.float32))


@lru_cache(maxsize=1)
def _noise(step: int, device: torch.device) -> Tensor:
    """A block of integers below 2^16, the same on every machine."""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(1 << 16, (STEP_BLOCK,), dtype=torch.int32, generator=generator).to(device)


def in_blocks(tensor: Tensor) -> tuple[Tensor, ...]:
    """Views of all numbers in order. Whole in fp32, which needs no room beside it, on a GPU, where a pass costs a
    launch, and where memory is not in order."""
    is_whole = tensor.dtype == torch.float32 or tensor.device.type != "cpu" or not tensor.is_contiguous()
    if is_whole or tensor.numel() <= STEP_BLOCK:
        return (tensor,)
    return tensor.view(-1).split(STEP_BLOCK)
