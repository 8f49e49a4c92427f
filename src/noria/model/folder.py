"""A model on disk: a folder with model.safetensors, tokenizer.json and, written last, config.json.

Without config.json a folder is no model, so one whose writing was interrupted is refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from noria.model.config import ModelConfig
from noria.model.quantised import restore_rows
from noria.model.transformer import Transformer

TIED = "head.weight"


class ModelFolderError(ValueError):
    """The folder holds no model that can be read; the message names the file and what is wrong with it."""


def save_model(folder: Path, model: Transformer, tokenizer_json: Path, extra: Mapping[str, Any] | None = None) -> None:
    """Write `model` and a copy of its tokenizer. `extra` is merged into config.json beside the shape."""
    save_state(folder, model.config, model.state_dict(), tokenizer_json, extra)


def save_state(
    folder: Path,
    config: ModelConfig,
    state: Mapping[str, Tensor],
    tokenizer_json: Path,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """As `save_model`, from bare tensors (quantised ones too). A tied head is stored once, as the embedding."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    kept = {name: tensor.contiguous() for name, tensor in state.items() if not (config.tied and name == TIED)}
    save_file(kept, folder / "model.safetensors")
    if tokenizer_json.resolve() != (folder / "tokenizer.json").resolve():
        shutil.copyfile(tokenizer_json, folder / "tokenizer.json")
    payload = {"model_type": "noria", "architecture": config.model_dump(), **(extra or {})}
    (folder / "config.json").write_text(json.dumps(payload, indent=1, sort_keys=True) + "\n")


def read_config(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """The shape and the whole of config.json. Raises ModelFolderError."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelFolderError(f"{folder} is not a model folder: it has no config.json")
    try:
        payload = json.loads(path.read_text())
        return ModelConfig(**payload["architecture"]), payload
    except KeyError as error:
        raise ModelFolderError(f"{path} does not describe a model that noria can read: no {error}") from error
    except (OSError, TypeError, ValueError) as error:  # ValueError: not JSON, not UTF-8, or not a valid shape
        raise ModelFolderError(f"{path} does not describe a model that noria can read: {error}") from error


def load_model(folder: Path) -> Transformer:
    """The model in evaluation mode. Weights stored as int8 come back in fp32 (see `deployment/quantize.py`)."""
    config, payload = read_config(folder)
    try:
        state = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise ModelFolderError(f"{folder / 'model.safetensors'} cannot be read: {error}") from error
    if "quantization" in payload:
        state = dequantise(state)
    if config.tied and TIED in state:
        raise ModelFolderError(f"{folder}: config.json says that the head is tied, but the weights hold a {TIED!r}")
    if config.tied and "embedding.weight" in state:
        state[TIED] = state["embedding.weight"]
    model = Transformer(config)
    _refuse_misfit(folder, model.state_dict(), state)
    model.load_state_dict(state)
    return model.eval()


def _refuse_misfit(folder: Path, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raises ModelFolderError where names, shapes or number formats are not those of the model."""
    missing, unexpected = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or unexpected:
        raise ModelFolderError(f"{folder}: weights do not fit config.json; missing {missing}, unexpected {unexpected}")
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"{tuple(tensor.shape)}, and config.json asks for {tuple(wanted[name].shape)}"
            raise ModelFolderError(f"{folder}: weights do not fit config.json; {name} is {shapes}")
        if not tensor.is_floating_point():
            raise ModelFolderError(f"{folder}: {name} holds {tensor.dtype}, but config.json names no quantization")


def dequantise(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights stored as `name` (int8, rows x columns) and `name.scale` (fp32, rows) -> fp32 weights."""
    scales = {name.removesuffix(".scale"): tensor for name, tensor in state.items() if name.endswith(".scale")}
    for name, scale in scales.items():
        if name not in state or scale.shape != state[name].shape[:1]:
            raise ModelFolderError(f"{name}.scale has no matrix of {scale.numel()} rows to go with it")
    return {
        name: restore_rows(tensor, scales[name]) if name in scales else tensor
        for name, tensor in state.items()
        if not name.endswith(".scale")
    }
