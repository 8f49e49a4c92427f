from __future__ import annotations

import functools
import sys

import pytest

from noria.artifacts import code


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `noria` of three rooms in another place; returns (write, digest of its stage's run function)."""
    monkeypatch.setattr(code, "SOURCE_ROOT", tmp_path)

    def write(module: str, text: str) -> None:
        path = tmp_path / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write("noria/__init__", "")
    write("noria/data/__init__", "")
    write("noria/data/dedup", "from noria.data.hashing import minhash\n")
    write("noria/data/hashing", "def minhash(): ...\n")
    write("noria/artifacts/store", "x = 1\n")
    write("noria/model", "x = 1\n")
    write(
        "noria/stage",
        "from noria.artifacts.store import x\n"
        "def run(context):\n    from noria.data import (  # why\n        dedup,\n    )\n",
    )

    def digest() -> str:
        for cached in (code.module_digest, code._imports, code._file_of, code._source_hash):
            cached.cache_clear()
        return code.module_digest("noria.stage", tmp_path / "noria/stage.py")

    yield write, digest
    for cached in (code.module_digest, code._imports, code._file_of, code._source_hash):
        cached.cache_clear()


@pytest.mark.parametrize("module", ["noria/stage", "noria/data/__init__", "noria/data/dedup", "noria/data/hashing"])
def test_digest_changes_with_every_module_that_the_step_reaches(package, module):
    write, digest = package
    before = digest()
    write(module, "from noria.data import dedup\nchanged = True\n")
    assert digest() != before


@pytest.mark.parametrize("module", ["noria/model", "noria/artifacts/store"])
def test_digest_ignores_rooms_not_reached_and_the_machinery(package, module):
    write, digest = package
    before = digest()
    write(module, "changed = True\n")
    assert digest() == before


def test_partial_and_interactive_functions_have_a_digest(monkeypatch):
    def run(context):
        return {}

    assert code.code_digest(functools.partial(run)) == code.code_digest(run)
    monkeypatch.delattr(sys.modules[__name__], "__file__")
    assert len(code.code_digest(run)) == 16
