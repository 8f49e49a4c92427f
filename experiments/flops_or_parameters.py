"""Claim: training FLOPs predict the loss better than parameters do.

Several sizes, each trained to several horizons (one stable run and a decay a horizon), give points (N, D, loss). For
each seed, a straight line in log-log is fitted to loss against FLOPs, and another to loss against N; the effect is the
difference of their root mean squared residuals in log loss.
"""

from __future__ import annotations

import sys

import numpy as np

from experiments.nano import Text, text
from experiments.verdict import arguments, judge, picture, show
from noria.model import Transformer
from noria.training import LoopConfig
from noria.training.ladder import train_horizons
from noria.training.pretraining import batch_at

SHAPES = ((32, 2), (64, 2), (96, 3))
HORIZONS = (40, 80, 160)
BATCH = 1024
RATE_AT_64 = 0.016


def points(data: Text, seed: int) -> list[tuple[int, float, float]]:
    """(N, FLOPs, held-out loss) of every size and horizon."""
    found = []
    stream = data.stream(BATCH, seed)
    for width, layers in SHAPES:
        shape = data.shape(width, layers)
        config = LoopConfig(steps=max(HORIZONS), learning_rate=RATE_AT_64 * 64 / width)
        losses = train_horizons(
            Transformer(shape, seed=seed), lambda step: batch_at(stream, step), HORIZONS, config, data.loss
        )
        for horizon, loss in zip(HORIZONS, losses, strict=True):
            found.append((shape.matmul_parameters(), horizon * BATCH * shape.flops_per_token(), loss))
    return found


def misfit(x: np.ndarray, loss: np.ndarray) -> float:
    """Root mean squared residual of log loss about its best line in log x."""
    line = np.polyfit(np.log(x), np.log(loss), 1)
    return float(np.sqrt(np.mean((np.polyval(line, np.log(x)) - np.log(loss)) ** 2)))


def main() -> int:
    options = arguments("flops_or_parameters", __doc__)
    data = text(options.store, options.threads)
    by_seed = [np.array(points(data, seed)).T for seed in range(options.seeds)]
    fits = [(misfit(flops, loss), misfit(size, loss)) for size, flops, loss in by_seed]
    sizes, flops, losses = by_seed[0]
    picture(
        "flops_or_parameters",
        {f"{int(n)} matmul parameters": (flops[sizes == n], losses[sizes == n]) for n in sorted(set(sizes))},
        "training FLOPs",
        "held-out loss, seed 0",
        log_x=True,
    )
    found = judge(
        "flops_or_parameters",
        "log loss lies closer to a line in log FLOPs than to one in log parameters",
        [by_size - by_flops for by_flops, by_size in fits],
        "root mean squared residual of log loss (parameters minus FLOPs)",
        residuals={"FLOPs": [round(a, 4) for a, _ in fits], "parameters": [round(b, 4) for _, b in fits]},
    )
    show(found, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
