"""The code digest: which sources made an artifact. Recorded and shown, never part of a key.

It covers the module of the step's run function and every module of this package that it imports, directly or not, also
inside functions. Imports are read from the text, so nothing is imported to find out. This room itself is left out: how
an artifact is stored can't change what is in it.
"""

from __future__ import annotations

import functools
import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PACKAGE = "noria"
SOURCE_ROOT = Path(__file__).parents[2]
_MACHINERY = f"{PACKAGE}.artifacts"
_IMPORT = re.compile(
    rf"^[ \t]*(?:from[ \t]+({PACKAGE}[\w.]*)[ \t]+import[ \t]+(\([^)]*\)|[^\n]*)|import[ \t]+({PACKAGE}[^\n]*))",
    re.MULTILINE,
)


def code_digest(run: Callable[..., Any]) -> str:
    """16 hex digits over the sources that `run` can reach. Changes with any edit to one of them."""
    while isinstance(run, functools.partial):
        run = run.func
    home = getattr(sys.modules.get(run.__module__), "__file__", None)
    if home is None or not Path(home).exists():  # a notebook cell or an interactive session
        return hashlib.sha256(run.__code__.co_code + repr(run.__code__.co_consts).encode()).hexdigest()[:16]
    return module_digest(run.__module__, Path(home))


@functools.cache
def module_digest(name: str, path: Path) -> str:
    hasher = hashlib.sha256()
    for module, file in sorted(_reach(name, path).items()):
        hasher.update(f"{module}\0{_source_hash(file)}\n".encode())
    return hasher.hexdigest()[:16]


def _reach(name: str, path: Path) -> dict[str, Path]:
    """Module name -> source file of everything that `name` imports within the package, itself included."""
    reached: dict[str, Path] = {}
    waiting = [(name, path)]
    while waiting:
        module, file = waiting.pop()
        if module not in reached:
            reached[module] = file
            waiting += _imports(file)
    return reached


@functools.cache
def _imports(path: Path) -> list[tuple[str, Path]]:
    found = []
    for base, names, plain in _IMPORT.findall(path.read_text(encoding="utf-8")):
        for module in _spelled(base, names, plain):
            parts = module.split(".")
            # Importing a.b.c runs a/__init__ and a/b/__init__ too.
            for depth in range(1, len(parts) + 1):
                prefix = ".".join(parts[:depth])
                file = _file_of(prefix)
                if file is not None and not prefix.startswith(_MACHINERY):
                    found.append((prefix, file))
    return found


def _spelled(base: str, names: str, plain: str) -> Iterator[str]:
    """The modules that one import statement may name; `from a import b` may name the module a.b."""
    if plain:
        yield from (part.split(" as ")[0].strip() for part in plain.split("#")[0].split(","))
        return
    listed = re.sub(r"#[^\n]*", "", names).strip("() \t\n")
    yield from (f"{base}.{part.split(' as ')[0].strip()}" for part in listed.split(","))
    yield base


@functools.cache
def _file_of(module: str) -> Path | None:
    folder = SOURCE_ROOT.joinpath(*module.split("."))
    for file in (folder / "__init__.py", folder.with_suffix(".py")):
        if file.exists():
            return file
    return None


@functools.cache
def _source_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
