"""The kernels of `kernels.cpp`, compiled where there is a C++ compiler, and their twins in PyTorch where there is none.

Compiled once for this machine (two or three seconds) and kept in the user's cache folder. NORIA_KERNELS=torch does
without. N tokens, H query heads, G key/value heads, d head width, D width, F hidden width, V vocabulary.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

LOG = logging.getLogger("noria.inference")
SOURCES = (Path(__file__).with_name("kernels.cpp"), Path(__file__).with_name("panels.h"))  # the first has the rest
# Nothing that lets the compiler reorder sums: only loops marked so are vectorised as sums, each always in one order.
FLAGS = "-std=c++17 -O3 -march=native -fopenmp -fPIC -fno-math-errno -fno-trapping-math".split()
HEAD_WIDTHS = (16, 32, 64, 128, 256)  # of `attend`
_POINTER, _COUNT, _REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_SIGNATURES = {
    "add_norm": [_POINTER] * 4 + [_COUNT] * 2 + [_REAL],
    "place": [_POINTER] * 9 + [_COUNT] * 4 + [_REAL],
    "attend": [_POINTER] * 5 + [_COUNT] + [_POINTER] * 2 + [_COUNT] * 6 + [_REAL],
    "multiply": [_POINTER] * 4 + [_COUNT] * 4,
    "swiglu": [_POINTER] * 2 + [_COUNT] * 2,
}
_SUFFIX = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class NativeKernels:
    """Thin calls into the compiled library. Tensors must be contiguous; nothing is checked here."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._calls = {}
        for name, arguments in _SIGNATURES.items():
            for dtype, suffix in _SUFFIX.items():
                call = getattr(library, f"noria_{name}_{suffix}")
                call.argtypes, call.restype = arguments, None
                self._calls[name, dtype] = call
        library.noria_threads.argtypes = [_COUNT]
        library.noria_choose.argtypes = [_POINTER] * 5 + [_COUNT] * 2

    def set_threads(self, count: int) -> None:
        """How many threads kernels called from this thread use."""
        self._library.noria_threads(count)

    def add_norm(self, x_ND: Tensor, added_ND: Tensor | None, weight_D: Tensor, out_ND: Tensor, eps: float) -> None:
        """x += added in place (fp32); out = x / rms(x) * weight."""
        self._calls["add_norm", out_ND.dtype](
            x_ND.data_ptr(), _address(added_ND), weight_D.data_ptr(), out_ND.data_ptr(), *x_ND.shape, eps
        )

    def place(
        self,
        qkv: Tensor,
        query_NHd: Tensor,
        key_SGd: Tensor,
        value_SGd: Tensor,
        slot_N: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        norms: tuple[Tensor, Tensor] | None,
        eps: float,
    ) -> None:
        """Split qkv (N, (H + 2G) d), norm and rotate queries and keys, store keys and values in the cache's slots."""
        count, heads, width = query_NHd.shape
        cos, sin = rotary or (None, None)
        query_norm, key_norm = norms or (None, None)
        self._calls["place", qkv.dtype](
            *map(_address, (qkv, query_NHd, key_SGd, value_SGd, slot_N, cos, sin, query_norm, key_norm)),
            *(count, heads, key_SGd.shape[1], width, eps),
        )

    def attend(
        self,
        query_NHd: Tensor,
        key_SGd: Tensor,
        value_SGd: Tensor,
        out_NHd: Tensor,
        tables: Tensor,
        row_N: Tensor,
        position_N: Tensor,
        block: int,
        window: int,
        scale: float,
    ) -> None:
        """softmax(scale q.k) v over the tokens 0..position of the sequence (window > 0: the last `window` of them)
        whose blocks are tables[row]."""
        self._calls["attend", query_NHd.dtype](
            *map(_address, (query_NHd, key_SGd, value_SGd, out_NHd, tables)),
            *(tables.shape[1], row_N.data_ptr(), position_N.data_ptr()),
            *(query_NHd.shape[0], query_NHd.shape[1], key_SGd.shape[1], query_NHd.shape[2], block, window, scale),
        )

    def multiply(self, x_MI: Tensor, values: Tensor, scale: Tensor, outputs: int, bits: int) -> Tensor:
        """x W^T (M, O), summed in fp32, of W in 32, 16, 8 or 4 bits, laid out as `panel_matrix.py` does."""
        out_MO = torch.empty(x_MI.shape[0], outputs, dtype=x_MI.dtype)
        self._calls["multiply", x_MI.dtype](*map(_address, (x_MI, values, scale, out_MO)), *x_MI.shape, outputs, bits)
        return out_MO

    def swiglu(self, gate_up: Tensor, out_NF: Tensor) -> None:
        """silu(gate) * up, from (N, 2F)."""
        self._calls["swiglu", out_NF.dtype](gate_up.data_ptr(), out_NF.data_ptr(), *out_NF.shape)

    def choose(self, logits_NV: Tensor, temperature_N: Tensor, uniform_N: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids (N,) by inverse CDF and their log-probabilities (N,); temperature 0 is greedy."""
        token_N = torch.empty(logits_NV.shape[0], dtype=torch.long)
        logprob_N = torch.empty(logits_NV.shape[0])
        self._library.noria_choose(
            *map(_address, (logits_NV, temperature_N, uniform_N, token_N, logprob_N)), *logits_NV.shape
        )
        return token_N, logprob_N


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@functools.cache
def kernels() -> NativeKernels | None:
    """The compiled kernels; None, after a warning that says why, where they can't be had."""
    if os.environ.get("NORIA_KERNELS") == "torch":
        return None
    try:
        return NativeKernels(ctypes.CDLL(str(_compiled())))
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        said = getattr(error, "stderr", "") or str(error)
        LOG.warning(
            "the engine runs on PyTorch alone, at about half its speed: no C++ kernels (%s)", said.strip()[-500:]
        )
        return None


def _compiled() -> Path:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise OSError("found no C++ compiler; install g++, or set CXX")
    source = b"".join(path.read_bytes() for path in SOURCES)
    machine = "".join(sorted(set(_lines("/proc/cpuinfo", ("flags", "Features"))))) or platform.processor()
    key = hashlib.sha256(source + repr((compiler, FLAGS, platform.machine(), machine)).encode()).hexdigest()[:24]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "noria"
    target = folder / f"kernels-{key}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        objects, library = f"{work}/kernels.o", f"{work}/kernels.so"
        for command in (
            [compiler, *FLAGS, "-c", str(SOURCES[0]), "-o", objects],
            [compiler, "-shared", "-fopenmp", objects, "-o", library],
        ):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        os.replace(library, target)  # at once: another process may be compiling the same
    return target


def _lines(path: str, names: tuple[str, ...]) -> list[str]:
    if not Path(path).exists():
        return []
    return [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.startswith(names)]
