"""Int8 weights: a matrix row is stored as integers in -127..127 and one fp32 scale (symmetric, per output channel).

    q = round(w / s), s = max|w_row| / 127      so that |w - s*q| <= s/2

On disk (`model.safetensors`): `name` int8 (rows, columns) and `name.scale` fp32 (rows); norms stay fp32; `config.json`
says `"quantization": {"bits": 8, ...}`. The embedding is quantised too: tied, it is the output head.

What it buys on disk is bytes, a quarter of fp32. `load_model` gives fp32 weights back; an engine with precision int8
keeps them in 8 bits in memory too, and multiplies with them so (`inference/weights.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from noria.model import load_model, read_config, save_state
from noria.model.quantised import quantise_rows, restore_rows

SCHEME = {"bits": 8, "scheme": "symmetric", "granularity": "output channel", "activations": "fp32"}


def quantise_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every matrix as int8 with its `.scale`; the rest unchanged. Raises ValueError on a weight that is not finite."""
    quantised: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if tensor.ndim != 2:
            quantised[name] = tensor
            continue
        try:
            quantised[name], quantised[f"{name}.scale"] = quantise_rows(tensor)
        except ValueError as error:
            raise ValueError(f"{name} {error}") from error
    return quantised


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
            back = restore_rows(quantised[name], quantised[f"{name}.scale"])
            errors.append(float((tensor - back).norm() / tensor.norm()))
    return max(errors)
