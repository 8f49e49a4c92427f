"""An environment from its file: one that comes with noria, found by its name, or any .py file of a user."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

from noria.harness.code_file import CodeFileError, error_line, read_code
from noria.harness.environments.environment import Environment
from noria.harness.well_formed import wrong_in_environment
from noria.types import digest

FOLDER = Path(__file__).with_name("environments")


class EnvironmentFileError(CodeFileError):
    """The file is no environment, or one of its functions failed."""


def environment_names() -> list[str]:
    """The environments that come with noria, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "environment"))


def load_environment(environment: Path | str) -> Environment:
    """An environment from a file, or one that comes with noria by its name. Raises EnvironmentFileError.

    The file's code runs in this process: it is your own code, not a model's.
    """
    path, source = read_code(environment, "environment", FOLDER, environment_names(), EnvironmentFileError)
    inside = path.resolve().parent == FOLDER.resolve()
    name = f"noria.harness.environments.{path.stem}" if inside else f"noria_environment_{digest(source)[:12]}"
    made = getattr(_module(path, name), "ENVIRONMENT", None)
    if not isinstance(made, Environment):
        raise EnvironmentFileError(f"{path}: sets no ENVIRONMENT = Environment(...)")
    if wrong := wrong_in_environment(made):
        raise EnvironmentFileError(f"{path}: {wrong}")
    return replace(made, version=digest(source))


def _module(path: Path, name: str) -> object:
    if name.startswith("noria."):
        return importlib.import_module(name)
    if name in sys.modules:
        return sys.modules[name]
    whole = path.resolve()
    spec = importlib.util.spec_from_file_location(name, whole)
    if spec is None or spec.loader is None:
        raise EnvironmentFileError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: its classes and its grader's version look it up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's file may raise anything; it is told where
        del sys.modules[name]
        line = error_line(error, str(whole)) or 1
        raise EnvironmentFileError(f"{path}:{line}: {type(error).__name__}: {error}") from error
    return module
