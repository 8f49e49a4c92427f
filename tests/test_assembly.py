"""How a turn starts from the one before it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from noria.assembly import build
from noria.recipe import load

RECIPE = Path(__file__).parent.parent / "recipes" / "debug.toml"


class FinishedTurn:
    """A store in which everything was made, and every release.json says the same."""

    def __init__(self, folder: Path, **release: Any) -> None:
        (folder / "release.json").write_text(json.dumps(release))
        self.folder = folder

    def get(self, key: str) -> Any:
        return SimpleNamespace(key=key, content=self.folder)

    def alias(self, name: str) -> None:
        return None


@pytest.mark.parametrize(
    ("decision", "kept", "incumbent"),
    [("release", False, True), ("reject", True, True), ("reject", False, False), ("inconclusive", False, False)],
)
def test_the_next_turn_has_an_incumbent_only_where_something_was_released(
    tmp_path: Path, decision: str, kept: bool, incumbent: bool
) -> None:
    store: Any = FinishedTurn(tmp_path, decision=decision, kept_incumbent=kept)
    steps = {step.name: step for step in build(load(RECIPE), 2, store)}
    assert ("model_incumbent" in steps["release"].inputs) == incumbent
    assert ("model_incumbent" in steps["candidates"].inputs) == incumbent
    assert ("evaluate_incumbent" in steps) == incumbent


def test_what_is_quantised_is_the_chat_model_and_not_the_agent(tmp_path: Path) -> None:
    store: Any = FinishedTurn(tmp_path)
    steps = {step.name: step for step in build(load(RECIPE), 1, store)}
    assert steps["quantised"].input_keys == {"model": steps["alignment_rl"].key}
