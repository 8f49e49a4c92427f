"""Which precision of products suits this processor."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Precision = Literal["float32", "bfloat16"]
AskedPrecision = Literal["auto", "float32", "bfloat16"]
BF16_UNITS = ("avx512_bf16", "amx_bf16")


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
