"""The profile of a step says where its time goes, and what a user would change."""

from __future__ import annotations

import pytest

from noria.model import Transformer
from noria.training import LoopConfig
from noria.training.profile import OTHER, advice, profile_steps, shares_by_kind
from tests.training.test_objectives import TINY, full_batch


@pytest.mark.slow
def test_the_shares_of_a_step_add_up_and_find_its_products():
    config = LoopConfig(steps=5, learning_rate=0.01)
    found = profile_steps(Transformer(TINY), full_batch(), config, 1e9)
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert found.shares["matrix products"] > 0 and found.shares["optimiser"] > 0
    assert found.tokens_per_second == pytest.approx(6 * 9 / found.seconds) and found.utilisation > 0


def test_each_operator_belongs_to_one_kind_and_an_optimisers_products_to_the_optimiser():
    shares = shares_by_kind(
        [
            (["aten::mm", "CompiledFunction"], 3.0),
            (["aten::bmm", "noria::blocked_attention"], 4.0),
            (["aten::mm", "Optimizer.step#MuonAdamW.step"], 1.0),
            (["aten::unheard_of"], 2.0),
        ]
    )
    assert shares == pytest.approx({"attention": 0.4, "matrix products": 0.3, OTHER: 0.2, "optimiser": 0.1})
    assert next(iter(shares)) == "attention"


def test_advice_names_what_is_switched_off():
    config = LoopConfig(steps=5, learning_rate=0.01)
    found = profile_steps(Transformer(TINY), full_batch(), config, 1e9)
    assert any("bfloat16" in line for line in advice(found, config, 54))
    on = config.model_copy(update={"precision": "bfloat16", "compile": True})
    assert not any("bfloat16" in line or "compile" in line for line in advice(found, on, 54))
