"""A Hugging Face folder or a GGUF file becomes a model folder of ours, with its tokenizer and chat template."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from noria.model.config import ModelConfig
from noria.model.folder import save_state
from noria.model.huggingface.families import UnsupportedModel, read_config
from noria.model.huggingface.names import is_norm, tensor_names

INDEX = "model.safetensors.index.json"
# What belongs to the tokenizer and the chat format, copied as it is; only the first must be there.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")

Read = Callable[[str], Tensor]


def import_model(source: Path, folder: Path, dtype: torch.dtype = torch.float32) -> ModelConfig:
    """Write `source`, a folder of `transformers` or a .gguf file, into `folder` as a model that `load_model` reads.

    Quantised GGUF weights are expanded. Raises UnsupportedModel with all that is in the way, before writing anything.
    """
    if source.is_file() and source.suffix == ".gguf":
        from noria.model.huggingface.gguf_import import import_gguf

        return import_gguf(source, folder, dtype)
    if not source.is_dir():
        raise UnsupportedModel(f"{source} is neither a folder nor a file whose name ends in .gguf")
    hf = _json(source / "config.json")
    config = read_config(hf)
    if not (source / "tokenizer.json").is_file():
        raise UnsupportedModel(f"{source} has no tokenizer.json; save its tokenizer in the fast format first")
    state = _converted(config, _Safetensors(source), dtype, gemma=hf["model_type"] == "gemma3_text")
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES[1:]:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if not (source / "generation_config.json").is_file():
        tokens = {
            name: hf[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if hf.get(name) is not None
        }
        (folder / "generation_config.json").write_text(json.dumps(tokens) + "\n")
    save_state(folder, config, state, source / "tokenizer.json", {"imported_from": hf["model_type"]})
    return config


def _converted(config: ModelConfig, read: _Safetensors, dtype: torch.dtype, gemma: bool) -> dict[str, Tensor]:
    """All tensors under our names. Gemma stores a norm's weight minus one, and the one is added here."""
    wanted = list(tensor_names(config))
    read.refuse_misfit({name for _, theirs, _ in wanted for name in theirs}, config.tied)
    state = {}
    for ours, theirs, _ in wanted:
        parts = [read(name) for name in theirs]
        tensor = parts[0] if len(parts) == 1 and "experts" not in theirs[0] else torch.stack(parts)
        tensor = tensor.float() + 1.0 if gemma and is_norm(ours) else tensor
        state[ours] = tensor.to(dtype)
    return state | router_biases(config)


def router_biases(config: ModelConfig) -> dict[str, Tensor]:
    """Models of Hugging Face that we read choose experts by score alone: a bias of zero for each."""
    if config.moe is None:
        return {}
    layers = (layer for layer in range(config.layers) if config.has_experts(layer))
    return {f"blocks.{layer}.moe.bias": torch.zeros(config.moe.experts) for layer in layers}


class _Safetensors:
    """The tensors of a folder by name, read one at a time, from one file or several with an index."""

    def __init__(self, folder: Path) -> None:
        self._file_of = dict(_files(folder))

    def __call__(self, name: str) -> Tensor:
        with safe_open(self._file_of[name], "pt") as file:
            return file.get_tensor(name)

    def refuse_misfit(self, wanted: set[str], tied: bool) -> None:
        """Raises UnsupportedModel for tensors that are missing, or that are there and would be ignored."""
        # Old exports also store what is computed: rotary frequencies, and a tied head a second time.
        ignored = {"lm_head.weight"} if tied else set()
        found = {name for name in self._file_of if not name.endswith("rotary_emb.inv_freq")} - ignored
        missing, extra = sorted(wanted - found), sorted(found - wanted)
        if missing or extra:
            said = [
                f"{len(names)} {kind}, first {names[0]}"
                for names, kind in ((missing, "missing"), (extra, "unknown"))
                if names
            ]
            raise UnsupportedModel(f"the weights do not fit config.json: {'; '.join(said)}")


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    if (folder / INDEX).is_file():
        for name, file in _json(folder / INDEX)["weight_map"].items():
            yield name, folder / file
        return
    path = folder / "model.safetensors"
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise UnsupportedModel(f"{path} cannot be read: {error}") from error
    yield from ((name, path) for name in names)


def _json(path: Path) -> Mapping[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"{path} cannot be read: {error}") from error
