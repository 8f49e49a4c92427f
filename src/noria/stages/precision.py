"""How a stage that trains computes: precision of products and weights, compiled or not, what is recomputed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Precision = Literal["float32", "bfloat16"]
AskedPrecision = Literal["auto", "float32", "bfloat16"]
BF16_UNITS = ("avx512_bf16", "amx_bf16")


class Computing(BaseModel):
    """How fast and in how much memory; named as in `LoopConfig`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    precision: AskedPrecision = Field(
        default="float32", description="of products; auto: bfloat16 where the processor has units for it"
    )
    weight_precision: Precision = Field(
        default="float32",
        description="of the matrices that are trained, their gradients and moments; bfloat16: half the memory, updates "
        "rounded at random; needs precision bfloat16",
    )
    compile: bool = Field(default=False, description="torch.compile each block; needs a C++ compiler")
    recompute_activations: bool = Field(
        default=False, description="activation checkpointing: less memory, a third more products"
    )

    @model_validator(mode="after")
    def _check_machine(self) -> Self:
        if self.weight_precision == "bfloat16" and precision_for(self.precision) == "float32":
            why = " (this processor has no units for it, so auto is float32)" if self.precision == "auto" else ""
            raise ValueError(f'weight_precision = "bfloat16" needs precision = "bfloat16"{why}')
        if self.compile:  # so that what is missing is told before anything runs
            from noria.training.compute import check_compiler

            check_compiler()
        return self


def bytes_per_weight(precision: Precision) -> int:
    return 2 if precision == "bfloat16" else 4


def precision_for(asked: AskedPrecision, cpuinfo: Path = Path("/proc/cpuinfo")) -> Precision:
    """auto: bfloat16 on an x86 processor with units for its products, else float32.

    Without them PyTorch's product in bf16 was a tenth as fast as in fp32 (docs/results.md).
    """
    if asked != "auto":
        return asked
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return "float32"
    return "bfloat16" if any(flag in text for flag in BF16_UNITS) else "float32"
