"""Stage 1, raw data: pinned packages and worked examples, packed with source, licence and origin of every record.

Content: files/ (what was packed), index.parquet (one row a record: where it lies), rejects.parquet (what could not be
read, with the reason), sources.json (licence, pin and counts of each source).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from noria.artifacts import Step, StepContext
from noria.data.fetch import Package

Kind = Literal["crawl", "code", "books", "forums", "docs", "synthetic"]
Format = Literal["html", "markdown", "python", "verses", "dialogues", "jsonl", "text"]


class SourceConfig(BaseModel):
    """One source: files of a pinned package (or of one local archive), of one kind and licence."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern="^[a-z][a-z0-9_]*$", description="name of the source everywhere below")
    kind: Kind = Field(description="which quality rules apply, and which share of the mixture it gets")
    format: Format = Field(description="how a record becomes text")
    licence: str = Field(description="SPDX expression; must be in `licences`")
    package: Package | None = Field(default=None, description="file on the package index, pinned by sha256")
    path: str | None = Field(default=None, description="instead of a package: a local archive or plain file")
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$", description="hash of the file at `path`")
    include: tuple[str, ...] = Field(default=("*",), description="patterns of member paths to take")
    exclude: tuple[str, ...] = Field(default=(), description="patterns of member paths to leave")
    language: str = Field(default="", description="declared language; empty: each document's is detected")
    most_records: int | None = Field(default=None, ge=1, description="take only the first so many members or lines")

    @model_validator(mode="after")
    def _one_place(self) -> SourceConfig:
        if (self.package is None) == (self.path is None) or (self.path is None) != (self.sha256 is None):
            raise ValueError(f"source {self.name!r} needs either a package, or a path with its sha256")
        return self


class SyntheticConfig(BaseModel):
    """Worked examples of the verifiable task families, from their pretraining split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    families: dict[str, PositiveInt] = Field(
        default={}, description="documents of each family of noria.evals.tasks; no more than it has distinct problems"
    )
    seed: int = Field(default=0, ge=0, description="seed of the generator")
    licence: str = Field(default="Apache-2.0", description="licence of the generated text")

    @field_validator("families")
    @classmethod
    def _families_exist(cls, value: dict[str, PositiveInt]) -> dict[str, PositiveInt]:
        if not value:
            return value
        from noria.evals.tasks import FAMILY_NAMES

        unknown = sorted(set(value) - set(FAMILY_NAMES))
        if unknown:
            near = [name for wrong in unknown for name in difflib.get_close_matches(wrong, FAMILY_NAMES, n=1)]
            hint = f" did you mean {', '.join(near)}?" if near else ""
            raise ValueError(f"no family is named {', '.join(unknown)};{hint} there are {', '.join(FAMILY_NAMES)}")
        return value


class Config(BaseModel):
    """[raw_data]"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    licences: tuple[str, ...] = Field(description="SPDX expressions that a source may have")
    sources: tuple[SourceConfig, ...] = Field(description="where text comes from")
    synthetic: SyntheticConfig = Field(default=SyntheticConfig(), description="generated worked examples")
    most_record_bytes: int = Field(default=8_000_000, ge=1, description="a larger record is set aside")

    @model_validator(mode="after")
    def _gate(self) -> Config:
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"two sources share a name: {sorted(names)}")
        licences = {source.name: source.licence for source in self.sources}
        for name, licence in {**licences, "synthetic": self.synthetic.licence}.items():
            if licence not in self.licences:
                raise ValueError(f"source {name!r} has licence {licence!r}, which `licences` does not allow")
        return self


def raw_data(config: Config) -> Step:
    return Step(name="raw_data", stage="s1_raw_data", kind="raw_data", version=1, config=config, run=run)


def run(context: StepContext) -> Mapping[str, Any]:
    from noria.data.index import RawIndex

    config: Config = context.config
    index = RawIndex(context.content, config.most_record_bytes)
    total = len(config.sources) + len(config.synthetic.families)
    done = 0
    for source in config.sources:
        context.report(done, total, "sources", source.name)
        index.add_archive(
            _archive(source, context, done, total),
            name=source.name,
            kind=source.kind,
            format=source.format,
            licence=source.licence,
            language=source.language,
            include=source.include,
            exclude=source.exclude,
            most_records=source.most_records,
            pin=_pin(source),
        )
        done += 1
    for family, pairs in _worked_examples(config.synthetic):
        context.report(done, total, "sources", family)
        index.add_synthetic(f"synthetic_{family}", pairs, config.synthetic.licence)
        done += 1
    return index.write()


def _archive(source: SourceConfig, context: StepContext, done: int, total: int) -> Path:
    from noria.data.fetch import FetchError, cache_folder, fetch, file_sha256

    if source.package is not None:
        arrived = 0

        def report(size: int) -> None:
            nonlocal arrived
            arrived += size
            context.report(done, total, "sources", f"{source.name}: {arrived / 1e6:.1f} MB downloaded")

        return fetch(source.package, cache_folder(), report)
    path = Path(source.path or "")
    if not path.is_file():
        raise FetchError(f"source {source.name!r}: no file at {path}")
    if (found := file_sha256(path)) != source.sha256:
        raise FetchError(f"source {source.name!r}: {path} has sha256 {found}, the recipe pins {source.sha256}")
    return path


def _pin(source: SourceConfig) -> dict[str, Any]:
    return source.package.model_dump() if source.package else {"path": source.path, "sha256": source.sha256}


def _worked_examples(config: SyntheticConfig) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(family, [(question, worked reply)]) of each family."""
    from noria.evals.tasks import demonstrate, generate

    for family, count in sorted(config.families.items()):
        tasks = generate(family, count, config.seed, split="pretraining")
        yield family, [(task.messages[-1].content, demonstrate(task)) for task in tasks]


def read_sources(content: Path) -> dict[str, dict[str, Any]]:
    """sources.json of a raw-data artifact: name -> kind, licence, format, language, pin, counts."""
    return json.loads((content / "sources.json").read_text(encoding="utf-8"))
