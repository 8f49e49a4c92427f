from __future__ import annotations

import pytest

from noria.data.tokenizer import Tokenizer, train_tokenizer
from noria.harness import FILE_TOOLS, Toolbox
from noria.harness.environments import lookup
from noria.sandbox import Limits, Sandbox


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    words = " ".join((*lookup.WORDS, *lookup.HELDOUT_WORDS))
    return train_tokenizer([f"find see value read list error invalid no such file tool {words}"] * 10, 500)


@pytest.fixture(scope="session")
def tools():
    with Sandbox(Limits(cpu_seconds=1, wall_seconds=5.0), workers=2) as box:
        yield Toolbox(box, FILE_TOOLS)
