from __future__ import annotations

import torch

from noria.model import ModelConfig, Transformer
from noria.training.batch import TokenBatch
from noria.training.ladder import ladder_steps, stable_steps, train_horizons
from noria.training.loop import Annotated, LoopConfig, train
from noria.training.step import mean_loss

TINY = ModelConfig(vocab_size=32, width=16, layers=1, heads=2, kv_heads=1, ffn_width=32, context=8)
CONFIG = LoopConfig(steps=12, learning_rate=0.02, warmup_steps=2, decay_share=0.4, schedule="wsd")


def batch(step: int) -> TokenBatch:
    tokens = torch.randint(0, 32, (2, 9), generator=torch.Generator().manual_seed(step))
    return TokenBatch(tokens, torch.ones(2, 8))


def measure(model: Transformer) -> float:
    return mean_loss(model, [batch(1000)])


def test_each_branch_is_bitwise_a_run_of_its_own():
    horizons = (5, 9, 12)
    together = train_horizons(Transformer(TINY, seed=1), batch, horizons, CONFIG, measure)
    for horizon, loss in zip(horizons, together, strict=True):
        alone = Transformer(TINY, seed=1)
        train(alone, lambda step: Annotated(batch(step)), CONFIG.model_copy(update={"steps": horizon}))
        assert measure(alone) == loss


def test_a_ladder_of_adamw_is_one_of_adamw():
    config = CONFIG.model_copy(update={"muon": False})
    (loss,) = train_horizons(Transformer(TINY, seed=1), batch, (5,), config, measure)
    alone = Transformer(TINY, seed=1)
    train(alone, lambda step: Annotated(batch(step)), config.model_copy(update={"steps": 5}))
    assert measure(alone) == loss != train_horizons(Transformer(TINY, seed=1), batch, (5,), CONFIG, measure)[0]


def test_a_ladder_costs_less_than_its_runs_and_counts_every_step():
    horizons, told = (5, 9, 12), []
    train_horizons(Transformer(TINY), batch, horizons, CONFIG, measure, told.append)
    assert len(told) == ladder_steps(horizons, CONFIG.decay_share) < sum(horizons)
    assert stable_steps(10, 0.4) == 6
