"""Speed against the machine: tokens a second as model FLOPs utilisation (MFU) of a measured matmul peak.

Observed only: nothing here may enter a key or content (planning/budget.py, `forecast_seconds`).
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from noria.model import ModelConfig


@dataclass(frozen=True)
class Peak:
    """The fastest square matrix product that this machine was seen to do, in FLOP/s, and its size."""

    flops_per_second: float
    size: int
    dtype: torch.dtype
    threads: int


def measure_peak(
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    sizes: tuple[int, ...] = (512, 1024, 2048, 4096),
    seconds: float = 2.0,
) -> Peak:
    """Time products of `sizes` in turn, at most `seconds` in all once each ran twice, and keep the best.

    The best and not the mean: a peak is what the machine can do, and neighbours only slow it down. A vendor's figure
    is no peak here: a CPU's clock falls under wide vectors, and a shared machine gives a part of itself.
    """
    device = torch.device(device)
    best = Peak(0.0, 0, dtype, torch.get_num_threads())
    for size in sizes:
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        _time_product(left, right)  # the first call allocates and picks a kernel
        budget, spent, runs = seconds / len(sizes), 0.0, 0
        while runs < 2 or (spent < budget and runs < 1000):
            took = _time_product(left, right)
            spent, runs = spent + took, runs + 1
            if 2.0 * size**3 / took > best.flops_per_second:
                best = Peak(2.0 * size**3 / took, size, dtype, torch.get_num_threads())
    return best


def _time_product(left: torch.Tensor, right: torch.Tensor) -> float:
    on_gpu = left.is_cuda
    if on_gpu:
        torch.cuda.synchronize(left.device)
    started = time.perf_counter()
    _ = left @ right
    if on_gpu:
        torch.cuda.synchronize(left.device)
    return time.perf_counter() - started


def utilisation(
    model: ModelConfig, tokens_per_second: float, peak_flops_per_second: float, sequence_length: int | None = None
) -> float:
    """MFU (PaLM, arXiv 2204.02311, appendix B): FLOPs that training needs a second, over those that the machine can do.

    Needed are one forward and one backward pass, the causal half of attention, the experts visited; recomputation and
    masked halves that a kernel computes anyway are not credited.
    """
    if peak_flops_per_second <= 0:
        raise ValueError(f"a peak must be positive; got {peak_flops_per_second} FLOP/s (measure_peak gives one)")
    return tokens_per_second * model.flops_per_token(sequence_length) / peak_flops_per_second


def tokens_per_second(tokens: list[float], seconds: list[float], warmup: int = 2) -> float:
    """The median of the steps' rates, without the first `warmup` (compiling, first touches of memory)."""
    if len(seconds) <= warmup or len(tokens) != len(seconds):
        raise ValueError(f"{len(seconds)} timed steps are too few for a speed: more than {warmup} are needed")
    rates = [count / took for count, took in zip(tokens[warmup:], seconds[warmup:], strict=True)]
    return statistics.median(rates)
