"""Int8 weights: a matrix row is stored as integers in -127..127 and one fp32 scale (symmetric, per output channel).

    q = round(w / s), s = max|w_row| / 127      so that |w - s*q| <= s/2

On disk (`model.safetensors`): `name` int8 (rows, columns) and `name.scale` fp32 (rows); norms stay fp32; `config.json`
says `"quantization": {"bits": 8, ...}`. The embedding is quantised too: tied, it is the output head.

What it buys here is bytes, a quarter of fp32. Speed it does not: on a CPU with AVX2, a product with the weights kept
int8 takes about 2.3x the time of fp32 at batch 1 and 1.2x at batch 64 (the conversion is extra work, and PyTorch has no
fused fp32 kernel: `torch._weight_int8pack_mm` was 5 to 40 times slower). So `load_model` converts once, and serving
runs at fp32 speed in fp32 memory; `keep_int8` is for when memory is short. Measured 2026-11 by `measure_linear`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from noria.model import Transformer, load_model, read_config, save_state

LEVELS = 127
SCHEME = {"bits": 8, "scheme": "symmetric", "granularity": "output channel", "activations": "fp32"}


def quantise_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every matrix as int8 with its `.scale`; the rest unchanged. Raises ValueError on a weight that is not finite."""
    quantised: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if tensor.ndim != 2:
            quantised[name] = tensor
            continue
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds values that are not finite; this model can't be quantised")
        quantised[name], quantised[f"{name}.scale"] = quantise_rows(tensor)
    return quantised


def quantise_rows(weight_RC: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 (R, C), fp32 scale (R,)). A row of zeros has scale 1."""
    weight_RC = weight_RC.float()
    scale_R = weight_RC.abs().amax(1) / LEVELS
    scale_R = torch.where(scale_R > 0, scale_R, 1.0)
    return (weight_RC / scale_R[:, None]).round().clamp(-LEVELS, LEVELS).to(torch.int8), scale_R


def quantise_folder(source: Path, target: Path) -> dict[str, float]:
    """Writes the int8 twin of the model folder `source`; returns its bytes before and after and the largest error."""
    model = load_model(source)
    config, payload = read_config(source)
    state = quantise_state(model.state_dict())
    if config.tied:
        state.pop("head.weight.scale", None)
    extra = {name: value for name, value in payload.items() if name not in ("model_type", "architecture")}
    save_state(target, config, state, source / "tokenizer.json", {**extra, "quantization": SCHEME})
    return {
        "bytes_before": float((source / "model.safetensors").stat().st_size),
        "bytes_after": float((target / "model.safetensors").stat().st_size),
        "largest_relative_error": largest_error(model.state_dict(), state),
    }


def largest_error(exact: Mapping[str, Tensor], quantised: Mapping[str, Tensor]) -> float:
    """max over matrices of ||w - s*q|| / ||w|| (Frobenius)."""
    errors = [0.0]
    for name, tensor in exact.items():
        if f"{name}.scale" in quantised and tensor.norm() > 0:
            back = quantised[name].float() * quantised[f"{name}.scale"][:, None]
            errors.append(float((tensor - back).norm() / tensor.norm()))
    return max(errors)


class QuantisedLinear(nn.Module):
    """A linear layer whose weights stay int8 in memory; they are converted while multiplying. Inference only."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight_RC: Tensor, scale_R: Tensor, bias_R: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight_RC)
        self.register_buffer("scale", scale_R)
        self.register_buffer("bias", bias_R)

    def forward(self, x: Tensor) -> Tensor:
        # (x q^T) s equals x (s q)^T; scaling the small result is cheaper than scaling the weights.
        y = (x @ self.weight.to(x.dtype).T) * self.scale
        return y if self.bias is None else y + self.bias


def keep_int8(folder: Path) -> Transformer:
    """The model of a quantised folder with its linear layers left int8: a quarter of the memory, slower products.

    The embedding (and with it a tied head) is a table in fp32. Raises ValueError where the folder is not quantised.
    """
    _, payload = read_config(folder)
    if "quantization" not in payload:
        raise ValueError(f"{folder} holds no quantised model; quantise_folder makes one")
    state = load_file(folder / "model.safetensors")
    model = load_model(folder)
    tied = model.head.weight is model.embedding.weight
    for path, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear) or (tied and path == "head"):
            continue
        parent, _, leaf = path.rpartition(".")
        replacement = QuantisedLinear(state[f"{path}.weight"], state[f"{path}.weight.scale"], state.get(f"{path}.bias"))
        setattr(model.get_submodule(parent), leaf, replacement)
    return model.eval()


def measure_linear(width: int, height: int, batch: int, repeats: int = 50) -> dict[str, Any]:
    """Seconds of one product in fp32 and with int8 weights kept: the numbers of this file's introduction."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(batch, width, generator=generator), torch.randn(height, width, generator=generator)
    exact = nn.Linear(width, height, bias=False)
    exact.weight.data = weight
    layers = {"fp32": exact, "int8": QuantisedLinear(*quantise_rows(weight))}
    seconds = {}
    with torch.inference_mode():
        for name, layer in layers.items():
            layer(x)
            started = time.perf_counter()
            for _ in range(repeats):
                layer(x)
            seconds[name] = (time.perf_counter() - started) / repeats
    return {"width": width, "height": height, "batch": batch, **seconds}
