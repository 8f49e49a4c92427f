"""In which precision a stage computes and keeps its weights; which one of products suits this processor."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Precision = Literal["float32", "bfloat16"]
AskedPrecision = Literal["auto", "float32", "bfloat16"]
BF16_UNITS = ("avx512_bf16", "amx_bf16")


class Precisions(BaseModel):
    """Of a stage that trains."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    precision: AskedPrecision = Field(
        default="float32", description="of products; auto: bfloat16 where the processor has units for it"
    )
    weight_precision: Precision = Field(
        default="float32",
        description="of the matrices that are trained, their gradients and moments; bfloat16: half the memory, updates "
        "rounded at random; needs precision bfloat16",
    )

    @model_validator(mode="after")
    def _check_precisions(self) -> Self:
        if self.weight_precision == "bfloat16" and precision_for(self.precision) == "float32":
            why = " (this processor has no units for it, so auto is float32)" if self.precision == "auto" else ""
            raise ValueError(f'weight_precision = "bfloat16" needs precision = "bfloat16"{why}')
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
