from __future__ import annotations

import pytest

from noria.stages.precision import precision_for


@pytest.mark.parametrize(
    ("flags", "chosen"),
    [
        ("avx2 avx512_bf16", "bfloat16"),
        ("amx_bf16 amx_tile", "bfloat16"),
        ("avx2 avx512f", "float32"),
        (None, "float32"),
    ],
)
def test_auto_is_bf16_only_where_the_processor_multiplies_it(tmp_path, flags, chosen):
    cpuinfo = tmp_path / "cpuinfo"
    if flags is not None:
        cpuinfo.write_text(f"flags\t\t: fpu {flags} sse\n")
    assert precision_for("auto", cpuinfo) == chosen
    assert precision_for("bfloat16", cpuinfo) == "bfloat16" and precision_for("float32", cpuinfo) == "float32"
