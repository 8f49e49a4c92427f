"""Imports only go down: cli, studio, assembly, loops, recipe, stages, rooms in their order, artifacts, types."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import noria

SOURCE = Path(noria.__file__).parent

ROOMS = (
    "deployment",
    "distillation",
    "posttraining",
    "evals",
    "harness",
    "grading",
    "inference",
    "training",
    "data",
    "planning",
    "model",
    "sandbox",
)
# Top to bottom. A unit may import itself and whatever stands further down.
UNITS = (
    "__main__",
    "cli",
    "studio",
    "assembly",
    "loops",
    "recipe",
    "recipe_errors",
    "stages",
    *ROOMS,
    "artifacts",
    "types",
)


def unit_of(module: str) -> str:
    """noria.training.loop -> training."""
    return module.split(".")[1] if "." in module else ""


def imports(source: str, package: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """(noria module, line) of every import, those inside functions and for type checkers too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            # `from noria import studio` names its units after the import.
            names = [f"noria.{alias.name}" for alias in node.names] if module == "noria" else [module]
        else:
            continue
        yield from ((name, node.lineno) for name in names if name.split(".")[0] == "noria")


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    return imports(path.read_text(encoding="utf-8"), ("noria", *path.relative_to(SOURCE).parent.parts))


def is_allowed(importer: str, imported: str) -> bool:
    return imported not in UNITS or imported == importer or UNITS.index(imported) > UNITS.index(importer)


FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def test_every_file_belongs_to_a_unit():
    units = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in FILES}
    assert units <= set(UNITS)


@pytest.mark.parametrize("unit", UNITS)
def test_imports_only_go_down(unit: str):
    wrong = [
        f"{path.relative_to(SOURCE)}:{line} imports {module}"
        for path in FILES
        if path.relative_to(SOURCE).parts[0].removesuffix(".py") == unit
        for module, line in imports_of(path)
        if not is_allowed(unit, unit_of(module))
    ]
    assert not wrong


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_know_nothing_of_artifacts(room: str):
    """They can be used from a notebook: what they need comes as a value or a folder."""
    wrong = [
        f"{path.relative_to(SOURCE)}:{line}"
        for path in FILES
        if path.relative_to(SOURCE).parts[0] == room
        for module, line in imports_of(path)
        if unit_of(module) == "artifacts"
    ]
    assert not wrong


def test_the_check_sees_imports_inside_functions_and_relative_ones():
    inside = "def f():\n    from noria.stages import s4\n    from ..deployment import gateway\n"
    found = {unit_of(module) for module, _ in imports(f"{inside}from noria import cli, types\n", ("noria", "training"))}
    assert found == {"stages", "deployment", "cli", "types"}
    assert [unit for unit in sorted(found) if is_allowed("training", unit)] == ["types"]
    assert is_allowed("training", "data") and not is_allowed("data", "training")
