"""Low-rank adapters (LoRA, arXiv 2106.09685), put on a model from outside: W + (alpha/r) B A, with W frozen.

They are a parametrisation of each weight, so every path that reads a weight (the loss, the engine, an export) sees the
adapted one, and every algorithm trains them as they are: SFT, RL, preferences, reward models. `merge` makes plain
weights of them; a file in PEFT's names keeps them apart.

r rank, m rows and n columns of an adapted matrix.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from noria.model import Transformer
from noria.model.huggingface.names import tensor_names

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."


class LoraConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(default=16, ge=1, description="r")
    alpha: float = Field(default=32.0, gt=0, description="the update is multiplied by alpha / r")
    targets: tuple[str, ...] = Field(
        default=(), description="last names of the linear layers to adapt; empty: all of the blocks, routers excepted"
    )


class AdapterError(ValueError):
    """The adapter can't be put on this model; the message says which tensor or setting is at fault."""


class LowRank(nn.Module):
    """The parametrisation: original (m, n) -> original + scale * lora_b (m, r) lora_a (r, n)."""

    def __init__(self, weight: Tensor, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        # A as a linear layer is initialised (Kaiming, slope sqrt 5), B zero: at the start the model is unchanged.
        bound = 1.0 / math.sqrt(columns)
        start = torch.empty(rank, columns).uniform_(-bound, bound, generator=generator)
        self.lora_a = nn.Parameter(start.to(weight.device))
        self.lora_b = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        self.scale, self.is_on = scale, True

    def forward(self, original: Tensor) -> Tensor:
        if not self.is_on:
            return original
        return torch.addmm(original, self.lora_b.to(original.dtype), self.lora_a.to(original.dtype), alpha=self.scale)


def adapt(model: Transformer, config: LoraConfig, seed: int = 0) -> list[str]:
    """Freeze `model` and put an adapter on every target layer, in place; the names of those layers.

    Experts are stacks and no linear layers: they can't be adapted, so a model that has some asks for named targets.
    Raises AdapterError where it gets none, for a target that no layer has, for a rank above the smaller side of a
    matrix, and for a model that already has adapters.
    """
    if has_adapters(model):
        raise AdapterError("the model already has adapters: merge them first")
    layers = _layers(model)
    known = {name.rsplit(".", 1)[-1] for name in layers}
    unknown = [target for target in config.targets if target not in known]
    if unknown:
        raise AdapterError(f"no linear layer is named {', '.join(unknown)}: there are {', '.join(sorted(known))}")
    if model.config.moe is not None and not config.targets:
        raise AdapterError(
            "this model has experts, which have no adapters here and would stay as they are: "
            f"name the targets to adapt, of {', '.join(sorted(known))}"
        )
    wanted = set(config.targets) or known - {"router"}
    chosen = {name: layer for name, layer in layers.items() if name.rsplit(".", 1)[-1] in wanted}
    for name, layer in chosen.items():
        if config.rank > min(layer.weight.shape):
            raise AdapterError(f"rank {config.rank} exceeds {name}, which is {tuple(layer.weight.shape)}: lower rank")
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for layer in chosen.values():
        low_rank = LowRank(layer.weight, config.rank, config.alpha / config.rank, generator)
        parametrize.register_parametrization(layer, "weight", low_rank)
    return list(chosen)


def has_adapters(model: nn.Module) -> bool:
    return any(isinstance(module, LowRank) for module in model.modules())


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """The model as it was before it was adapted, meanwhile: the reference of DPO or of a KL, at no memory."""
    found = [module for module in model.modules() if isinstance(module, LowRank)]
    for module in found:
        module.is_on = False
    try:
        yield
    finally:
        for module in found:
            module.is_on = True


@contextmanager
def as_reference(model: Transformer, reference: Transformer | None) -> Iterator[Transformer]:
    """The model to compare with, meanwhile: `reference`, or without one `model` with its adapters off.

    Raises ValueError where there is neither."""
    if reference is not None:
        yield reference
        return
    if not has_adapters(model):
        raise ValueError("a comparison with the model before training needs a frozen copy of it as `reference`")
    with without_adapters(model):
        yield model


def merge(model: Transformer) -> None:
    """Add every adapter into its weight, in place: a plain model again, all of it trainable."""
    for layer in _layers(model).values():
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    model.requires_grad_(True)


@torch.no_grad()
def merged_state(model: Transformer) -> dict[str, Tensor]:
    """The state dict that `merge` would give, `model` left as it is: for an engine that keeps weights of its own."""
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        layer, _, rest = name.partition(".parametrizations.weight.")
        if not rest:
            found[name] = tensor
        elif rest == "original":
            weight = model.get_submodule(layer).weight
            assert isinstance(weight, Tensor)
            found[f"{layer}.weight"] = weight.detach()
    return found


def save_adapter(folder: Path, model: Transformer, config: LoraConfig, base: str = "") -> None:
    """The adapters alone, as PEFT writes them: adapter_model.safetensors and, last, adapter_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).unlink(missing_ok=True)
    theirs = _their_names(model)
    tensors: dict[str, Tensor] = {}
    for name, low_rank in _adapters(model).items():
        tensors[f"{PREFIX}{theirs[name]}.lora_A.weight"] = low_rank.lora_a.detach().clone()
        tensors[f"{PREFIX}{theirs[name]}.lora_B.weight"] = low_rank.lora_b.detach().clone()
    if not tensors:
        raise AdapterError("the model has no adapters to save")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({theirs[name].rsplit(".", 1)[-1] for name in _adapters(model)}),
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def load_adapter(folder: Path, model: Transformer) -> LoraConfig:
    """Put the adapters of `folder` on `model`, in place. Raises AdapterError before anything is changed where the files
    can't be read, name a layer that the model has not, or hold a tensor of another shape."""
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
        config = LoraConfig(rank=settings["r"], alpha=settings["lora_alpha"])
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise AdapterError(f"{folder} holds no LoRA adapter that can be read: {error}") from error
    layers, ours = _layers(model), {theirs: name for name, theirs in _their_names(model).items()}
    adapted: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        theirs, _, which = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if theirs not in ours or which not in ("lora_A", "lora_B"):
            raise AdapterError(f"{folder / WEIGHTS}: {key} belongs to no linear layer of this model")
        rows, columns = layers[ours[theirs]].weight.shape
        wanted = (config.rank, columns) if which == "lora_A" else (rows, config.rank)
        if tuple(tensor.shape) != wanted:
            raise AdapterError(
                f"{folder / WEIGHTS}: {key} is {tuple(tensor.shape)}, and on this model it would be {wanted}: the "
                "adapter was made for a model of another shape"
            )
        adapted.setdefault(ours[theirs], {})[which] = tensor
    if lone := [name for name, pair in adapted.items() if len(pair) < 2]:
        raise AdapterError(f"{folder / WEIGHTS}: {lone[0]} has only one of lora_A and lora_B")
    _put_on(model, adapted, config)
    return config


def _put_on(model: Transformer, adapted: dict[str, dict[str, Tensor]], config: LoraConfig) -> None:
    if has_adapters(model):
        raise AdapterError("the model already has adapters: merge them first")
    model.requires_grad_(False)
    layers, generator = _layers(model), torch.Generator()
    for name, pair in adapted.items():
        low_rank = LowRank(layers[name].weight, config.rank, config.alpha / config.rank, generator)
        with torch.no_grad():
            low_rank.lora_a.copy_(pair["lora_A"])
            low_rank.lora_b.copy_(pair["lora_B"])
        parametrize.register_parametrization(layers[name], "weight", low_rank)


def _layers(model: Transformer) -> dict[str, nn.Linear]:
    found = ((name, module) for name, module in model.named_modules() if name.startswith("blocks."))
    return {name: module for name, module in found if isinstance(module, nn.Linear)}


def _adapters(model: Transformer) -> dict[str, LowRank]:
    found: dict[str, LowRank] = {}
    for name, layer in _layers(model).items():
        if parametrize.is_parametrized(layer, "weight"):
            (low_rank,) = layer.parametrizations.weight  # type: ignore[union-attr, misc]
            assert isinstance(low_rank, LowRank)
            found[name] = low_rank
    return found


def _their_names(model: Transformer) -> dict[str, str]:
    """The Hugging Face name of each layer, where one of their families has it; else its own."""
    found = {name: name for name in _layers(model)}
    names: Sequence[tuple[str, Sequence[str], str]] = []
    try:
        names = list(tensor_names(model.config))
    except ValueError:  # a shape that no family of theirs has
        return found
    for ours, theirs, _ in names:
        layer = ours.removesuffix(".weight")
        if layer in found and len(theirs) == 1:
            found[layer] = theirs[0].removesuffix(".weight")
    return found
