"""Claim: at a rate as for fine-tuning, bf16 weights learn more if they are rounded at random than to the nearest.

A model is pretrained in fp32 at 0.016, then trained on at a constant AdamW rate of 1e-4, which moves a usual weight by
less than half of what separates bf16 numbers: in fp32, in bf16 rounded at random, in bf16 rounded to the nearest (as
optimisers of bf16 weights do). The effect is the loss that the nearest leaves minus that of random rounding; the
details tell how much of what fp32 gains each of the two gains.
"""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Sequence
from typing import Literal
from unittest import mock

from torch import Tensor

from experiments.nano import Text, text
from experiments.verdict import arguments, judge, picture, show
from noria.evals.statistics import mean_interval
from noria.model import Transformer
from noria.training import LoopConfig, optim

WIDTH, LAYERS, STEPS, BATCH = 64, 2, 200, 1024
RATE, LATER_RATE = 0.016, 1e-4
Arm = Literal["fp32", "random", "nearest"]
ARMS: tuple[Arm, ...] = ("fp32", "random", "nearest")
# Held-out loss before; by arm: the losses of its steps, held-out loss after.
Run = tuple[float, dict[Arm, tuple[list[float], float]]]


def nearest(target: Tensor, value: Tensor, step: int) -> None:
    target.copy_(value)


def run(data: Text, seed: int) -> Run:
    start = Transformer(data.shape(WIDTH, LAYERS), seed=seed)
    _, before = data.train(start, LoopConfig(steps=STEPS, learning_rate=RATE, precision="bfloat16"), BATCH, seed)
    found: dict[Arm, tuple[list[float], float]] = {}
    for arm in ARMS:
        config = LoopConfig(
            steps=STEPS,
            learning_rate=LATER_RATE,
            schedule="constant",
            weight_decay=0.0,
            muon=False,
            precision="bfloat16",
            weight_precision="float32" if arm == "fp32" else "bfloat16",
        )
        with mock.patch.object(optim, "write_rounded", nearest if arm == "nearest" else optim.write_rounded):
            history, loss = data.train(copy.deepcopy(start), config, BATCH, seed + 100)
        found[arm] = [row["loss_ce"] for row in history], loss
    return before, found


def lag_behind_fp32(runs: Sequence[Run], arm: Arm) -> list[float]:
    """By step, how far a run's loss lies above that of fp32 on the same batch; the mean over seeds."""
    pairs = [zip(found[arm][0], found["fp32"][0], strict=True) for _, found in runs]
    by_seed = [[own - full for own, full in pair] for pair in pairs]
    return [statistics.fmean(values) for values in zip(*by_seed, strict=True)]


def main() -> int:
    options = arguments("weights_in_bf16", __doc__)
    data = text(options.store, options.threads)
    runs = [run(data, seed) for seed in range(options.seeds)]
    gains = {arm: [before - found[arm][1] for before, found in runs] for arm in ARMS}
    picture(
        "weights_in_bf16",
        {f"rounded: {arm}": (range(STEPS), lag_behind_fp32(runs, arm)) for arm in ("random", "nearest")},
        "optimiser step at the later rate",
        "loss above fp32 on the same batch, nats",
    )
    shares = {
        arm: mean_interval([own / full for own, full in zip(gains[arm], gains["fp32"], strict=True)])
        for arm in ("random", "nearest")
    }
    found = judge(
        "weights_in_bf16",
        f"rounded at random, bf16 weights end lower than rounded to the nearest, {STEPS} steps at {LATER_RATE:g}",
        [random - near for random, near in zip(gains["random"], gains["nearest"], strict=True)],
        "nats a token (nearest minus random)",
        premise=gains["fp32"],
        gains={arm: [round(gain, 4) for gain in values] for arm, values in gains.items()},
        share_of_fp32={arm: [round(s.estimate, 3), round(s.low, 3), round(s.high, 3)] for arm, s in shares.items()},
    )
    show(found, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
