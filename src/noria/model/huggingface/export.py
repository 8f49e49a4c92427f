"""A model folder of ours becomes one that `transformers` and vLLM load: config.json, safetensors, tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from noria.model.folder import load_model
from noria.model.huggingface.families import family_of, write_config
from noria.model.huggingface.importing import INDEX, TOKENIZER_FILES
from noria.model.huggingface.names import is_norm, tensor_names
from noria.model.transformer import Transformer

SHARD_BYTES = 4_000_000_000


def export_folder(
    source: Path, folder: Path, dtype: torch.dtype = torch.float32, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write the model in `source` into `folder`, its numbers in `dtype`. config.json is written last.

    Raises UnsupportedModel, before writing, for a model that no family can hold, ModelFolderError for a damaged one.
    """
    model = load_model(source)
    tokens = read_token_ids(source)
    described = write_config(model.config, str(dtype).removeprefix("torch."), tokens)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    _write_shards(folder, dict(_theirs(model, dtype)), shard_bytes)
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n")


def read_token_ids(folder: Path) -> dict[str, Any]:
    """bos, eos and pad ids of a model folder, where it says them."""
    path = folder / "generation_config.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    return {name: found[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in found}


def _theirs(model: Transformer, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    gemma = family_of(model.config) == "gemma3_text"
    state = model.state_dict()
    for ours, theirs, _ in tensor_names(model.config):
        tensor = state[ours].float() - 1.0 if gemma and is_norm(ours) else state[ours]
        parts = tensor if "experts" in theirs[0] else (tensor,)
        yield from ((name, part.to(dtype).contiguous().clone()) for name, part in zip(theirs, parts, strict=True))


def _write_shards(folder: Path, tensors: dict[str, Tensor], shard_bytes: int) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        if used and used + tensor.nbytes > shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", {"format": "pt"})
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file, {"format": "pt"})
        places |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2) + "\n")
