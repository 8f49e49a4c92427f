"""What is wrong with a recipe, in words: file, line, field, what was found, what is allowed, the nearest valid name."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. `line` is 0 where it is not known; `nearest` is empty where no name comes near."""

    file: str
    line: int
    field: str
    found: str
    allowed: str
    nearest: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        allowed = f"allowed: {self.allowed}" if self.allowed else ""
        parts = [place, self.field, f"found {self.found}", allowed, self.nearest and f"did you mean {self.nearest}?"]
        return "; ".join(part for part in parts if part)


class RecipeError(ValueError):
    """A recipe that can't be used; `problems` holds all that was found, and `str` says it a line each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in problems))


def explain(error: ValidationError, model: type[BaseModel], where: Callable[[str], tuple[str, int]]) -> list[Problem]:
    """Pydantic's errors as problems, one a field: the several that a union gives become one."""
    found: dict[str, Problem] = {}
    for item in error.errors():
        field, owner, info = _locate(model, item["loc"])
        problem = _problem(item, *where(field), field, owner, info)
        if field not in found or item["type"] == "value_error":
            found[field] = problem
    return sorted(found.values(), key=lambda problem: (problem.file, problem.line, problem.field))


def _problem(item: Any, file: str, line: int, field: str, owner: type[BaseModel], info: FieldInfo | None) -> Problem:
    allowed = _allowed(info) if info else ""
    if item["type"] == "extra_forbidden":
        names, last = list(owner.model_fields), field.rpartition(".")[2]
        near = difflib.get_close_matches(last, names, n=1, cutoff=0.5)
        return Problem(file, line, field, f"the unknown name {last}", ", ".join(names), near[0] if near else "")
    if item["type"] == "missing":
        return Problem(file, line, field, "nothing", allowed)
    if item["type"] == "value_error":
        said = str(item["ctx"]["error"])
        # A check over several fields of a section names them itself.
        whole = info is None or _section_of(info.annotation) is not None
        return Problem(
            file, line, field, said if whole else f"{_shown(item['input'])}: {said}", "" if whole else allowed
        )
    return Problem(file, line, field, _shown(item["input"]), allowed or item["msg"])


def _locate(model: type[BaseModel], location: Sequence[Any]) -> tuple[str, type[BaseModel], FieldInfo | None]:
    """(dotted field, the class that owns it, its declaration). Stops where pydantic names the branch of a union."""
    parts: list[str] = []
    owner, inside, info = model, model if location else None, None
    for part in location:
        if isinstance(part, int):
            continue  # an item of a list: the list's name says enough
        if inside is None:
            break
        owner, info = inside, inside.model_fields.get(part)
        inside = _section_of(info.annotation) if info else None
        parts.append(part)
    return ".".join(parts), owner, info


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The configuration class inside an annotation such as Config or tuple[Config, ...]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        if (found := _section_of(inner)) is not None:
            return found
    return None


def _allowed(info: FieldInfo) -> str:
    """E.g. "a whole number or \"auto\", >= 1 (tokens an optimiser step)"."""
    bounds = [bound for item in info.metadata for bound in _bounds(item)]
    text = ", ".join([_type_name(info.annotation), *bounds])
    return f"{text} ({info.description})" if info.description else text


def _bounds(item: Any) -> list[str]:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "a multiple of"}
    found = [f"{sign} {getattr(item, name):g}" for name, sign in signs.items() if getattr(item, name, None) is not None]
    if getattr(item, "min_length", None) is not None:
        found.append(f"at least {item.min_length} long")
    if getattr(item, "max_length", None) is not None:
        found.append(f"at most {item.max_length} long")
    if getattr(item, "pattern", None) is not None:
        found.append(f"of the form {item.pattern}")
    return found


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "nothing"}


def _type_name(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in _NAMES:
        return _NAMES[annotation]
    if origin is Literal:
        return " or ".join(json.dumps(value) for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(item) for item in inner)
    if origin in (tuple, list, set, frozenset):
        return f"a list, each {_type_name(inner[0])}" if inner else "a list"
    if origin is dict or annotation is dict:
        return f"a table, each value {_type_name(inner[1])}" if inner else "a table"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a table with {', '.join(annotation.model_fields)}"
    if hasattr(annotation, "__metadata__"):
        return _type_name(inner[0])
    return getattr(annotation, "__name__", str(annotation))


def _shown(value: Any) -> str:
    kind = {bool: "true/false", int: "whole number", float: "number", str: "text", list: "list", dict: "table"}
    text = json.dumps(value, ensure_ascii=False, default=str)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({kind.get(type(value), type(value).__name__)})"
