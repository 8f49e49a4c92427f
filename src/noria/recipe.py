"""A recipe: one typed section a stage, loaded from TOML, with all that is wrong said at once, before any work.

extends = "nano.toml"          # optional: another recipe, beside this one, whose values this one changes
[run]
name = "nano-cosine"
[pretraining]
learning_rate = 0.01
"""

from __future__ import annotations

import json
import math
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from noria.data.parallel import cores
from noria.recipe_errors import Problem, RecipeError, explain
from noria.stages import open_model as journey
from noria.stages import (
    open_model_evaluation,
    open_model_source,
    open_model_tasks,
    s1_raw_data,
    s2_data_engineering,
    s3_system_recipe,
    s4_pretraining,
    s5_posttraining,
    s6_evaluation,
    s7_agent_harness,
    s8_distillation,
    s9_deployment,
)
from noria.stages.ablations import Config as AblationsConfig

Where = tuple[str, int]  # file and line, or "--set section.field=value" and 0


class RunConfig(BaseModel):
    """[run]: what the whole run shares."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_.-]*$", description="names the run in the store; the file's name if left out"
    )
    seed: int = Field(default=0, ge=0, description="every random choice derives from it")
    threads: int = Field(
        default=1, ge=1, le=1024, description="CPU threads of numeric steps; identity, as sums depend on their order"
    )


def _defaults(section: type[BaseModel]) -> Any:
    return Field(default_factory=section)


class Recipe(BaseModel):
    """All that a run depends on. A section left out has its stage's defaults; [raw_data] has none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: RunConfig
    raw_data: s1_raw_data.Config
    data: s2_data_engineering.Config = _defaults(s2_data_engineering.Config)
    system: s3_system_recipe.Config = _defaults(s3_system_recipe.Config)
    pretraining: s4_pretraining.Config = _defaults(s4_pretraining.Config)
    posttraining: s5_posttraining.Config = _defaults(s5_posttraining.Config)
    evaluation: s6_evaluation.Config = _defaults(s6_evaluation.Config)
    harness: s7_agent_harness.Config = _defaults(s7_agent_harness.Config)
    distillation: s8_distillation.Config = _defaults(s8_distillation.Config)
    deployment: s9_deployment.Config = _defaults(s9_deployment.Config)
    ablations: AblationsConfig | None = Field(default=None, description="arms to run instead of the nine stages")


class OpenModelRecipe(BaseModel):
    """A recipe with [open_model]: an open model instead of stages 1 to 4, post-trained on verifiable tasks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: RunConfig
    open_model: open_model_source.Config
    tasks: open_model_tasks.Config
    grpo: journey.GrpoSection = _defaults(journey.GrpoSection)
    evaluation: open_model_evaluation.EvaluationSection = _defaults(open_model_evaluation.EvaluationSection)
    release: journey.ReleaseSection = _defaults(journey.ReleaseSection)


@dataclass(frozen=True)
class _Source:
    """Values as read, where each dotted field was last set, and the overrides by the field that they set."""

    values: dict[str, Any]
    lines: dict[str, Where]
    overrides: Mapping[str, str] = field(default_factory=dict)


def load(path: Path | str, overrides: Sequence[str] = ()) -> Recipe | OpenModelRecipe:
    """The recipe at `path` with `overrides` ("section.field=value", the value spelled as in TOML) applied.

    Raises RecipeError with every problem found: file, line, field, what was found, what is allowed, the nearest name.
    """
    source = _read(Path(path), ())
    try:
        recipe = parse(_with_overrides(source, overrides), Path(path))
    except RecipeError as error:
        # What is wrong without the overrides too is the file's fault, not theirs.
        own = {(problem.field, problem.found): problem for problem in _problems(source, Path(path))}
        raise RecipeError([own.get((problem.field, problem.found), problem) for problem in error.problems]) from None
    if recipe.run.threads > (here := cores()):
        # No error: threads are part of what identifies a result, and it may have been made on a larger machine.
        print(
            f"noria: {path}: run.threads is {recipe.run.threads} and this machine has {here} cores: training will be "
            f"slower than with {here}",
            file=sys.stderr,
        )
    return recipe


def _problems(source: _Source, path: Path) -> Sequence[Problem]:
    try:
        parse(source, path)
    except RecipeError as error:
        return error.problems
    return ()


def parse(source: _Source, path: Path) -> Recipe | OpenModelRecipe:
    """Validate strictly: "3" is no number and 1.5 no count; a whole number may stand for a real one."""
    values = {**source.values}
    run = values.setdefault("run", {})
    if isinstance(run, dict):
        values["run"] = {"name": path.stem.lower(), **run}
    problems = list(_not_json(values, source, str(path)))
    kind: type[Recipe | OpenModelRecipe] = OpenModelRecipe if "open_model" in values else Recipe
    if not problems:
        try:
            return kind.model_validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            problems = explain(error, kind, lambda field: _where(source, str(path), field))
    raise RecipeError(problems)


def _read(path: Path, seen: tuple[Path, ...]) -> _Source:
    resolved = path.resolve()
    if resolved in seen:
        chain = " -> ".join(item.name for item in (*seen, resolved))
        raise RecipeError([Problem(str(path), 0, "extends", chain, "a chain of recipes that ends")])
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except OSError as error:
        raise RecipeError([Problem(str(path), 0, "", error.strerror or str(error), "a readable TOML file")]) from error
    except UnicodeDecodeError as error:
        raise RecipeError([Problem(str(path), 0, "", "bytes that are not UTF-8", "TOML, encoded in UTF-8")]) from error
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        raise RecipeError([Problem(str(path), int(line[1]) if line else 0, "", str(error), "valid TOML")]) from error
    lines = {field: (str(path), line) for field, line in _lines(text)}
    base = values.pop("extends", None)
    if base is None:
        return _Source(values, lines)
    if not isinstance(base, str):
        raise RecipeError([Problem(str(path), lines["extends"][1], "extends", repr(base), "the name of a TOML file")])
    below = _read(path.parent / base, (*seen, resolved))
    # A run of another recipe has another name unless it says otherwise: what "last time" was must not mix.
    inherited = {**below.values, "run": {k: v for k, v in below.values.get("run", {}).items() if k != "name"}}
    return _Source(_merged(inherited, values), {**below.lines, **lines})


def _with_overrides(source: _Source, overrides: Sequence[str]) -> _Source:
    values, applied, problems = source.values, {}, []
    for override in overrides:
        name, equals, text = override.partition("=")
        parts = name.strip().split(".")
        if not (equals and len(parts) > 1 and all(parts)):
            problems.append(Problem("--set", 0, name.strip(), override, "section.field=value, e.g. run.seed=1"))
            continue
        if above := _list_above(values, parts):
            allowed = f"--set can't change one item: set the whole list, {above}=[...], or write a recipe that extends"
            problems.append(Problem(f"--set {override}", 0, above, "a list", f"{allowed} this one"))
            continue
        nested: Any = _scalar(text.strip())
        for part in reversed(parts):
            nested = {part: nested}
        values = _merged(values, nested)
        applied[".".join(parts)] = f"--set {override}"
    if problems:
        raise RecipeError(problems)
    return _Source(values, source.lines, applied)


def _list_above(values: Any, parts: Sequence[str]) -> str:
    """The field on the way to `parts` that is a list; empty if there is none."""
    for depth, part in enumerate(parts[:-1], start=1):
        values = values.get(part) if isinstance(values, dict) else None
        if isinstance(values, list):
            return ".".join(parts[:depth])
    return ""


def _scalar(text: str) -> Any:
    """A TOML value; what is none is text without its quotes, so that --set run.name=mine needs no quoting twice."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if both else value
    return merged


def _lines(text: str) -> Iterator[tuple[str, int]]:
    """(dotted field, line) of each assignment and table header; enough for messages, tomllib judges the syntax."""
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[\[?\s*([^\[\]]+?)\s*\]\]?\s*(#.*)?$", line):
            table = re.sub(r"[\"'\s]", "", header[1])
            yield table, number
        elif assigned := re.match(r"\s*([A-Za-z0-9_\-.\"' ]+?)\s*=", line):
            field = re.sub(r"[\"'\s]", "", assigned[1])
            yield (f"{table}.{field}" if table else field), number


def _where(source: _Source, path: str, field: str) -> Where:
    """Where a field, or failing that the table around it, was set; an override of it or inside it comes first."""
    near = [
        override
        for name, override in source.overrides.items()
        if f"{field}.".startswith(f"{name}.") or (field and name.startswith(f"{field}."))
    ]
    if near:
        return " ".join(near), 0
    while field:
        if field in source.lines:
            return source.lines[field]
        field = field.rpartition(".")[0]
    return path, 0


def _not_json(value: Any, source: _Source, path: str, field: str = "") -> Iterator[Problem]:
    """TOML's dates, infinities and NaN: no setting takes them, and a key must not depend on them."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _not_json(item, source, path, f"{field}.{name}" if field else name)
    elif isinstance(value, list):
        for item in value:
            yield from _not_json(item, source, path, field)
    elif isinstance(value, float) and not math.isfinite(value):
        yield Problem(*_where(source, path, field), field, str(value), "a finite number")
    elif not isinstance(value, str | int | float | bool):
        yield Problem(*_where(source, path, field), field, str(value), "text, a number, true or false, a list, a table")
