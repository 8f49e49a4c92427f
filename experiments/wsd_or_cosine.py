"""Claim: a warm-up/stable/decay schedule loses nothing against cosine at the same tokens (arXiv 2405.18392).

The effect is cosine's held-out loss minus that of WSD, each at the best of the same rates. WSD decays to zero, cosine
to a tenth, as each is used; what WSD buys besides is that one stable run serves several horizons.
"""

from __future__ import annotations

import sys
from typing import Literal

from experiments.nano import Text, text
from experiments.verdict import arguments, judge, picture, show
from noria.model import Transformer
from noria.training import LoopConfig

WIDTH, LAYERS, STEPS, BATCH = 64, 2, 200, 1024
RATES = (0.008, 0.016, 0.032)
TUNING_SEED = 1000
Arm = Literal["wsd", "cosine"]
ARMS: tuple[Arm, ...] = ("wsd", "cosine")


def run(data: Text, schedule: Arm, rate: float, seed: int) -> tuple[list[float], float]:
    model = Transformer(data.shape(WIDTH, LAYERS), seed=seed)
    config = LoopConfig(steps=STEPS, learning_rate=rate, schedule=schedule)
    history, loss = data.train(model, config, BATCH, seed)
    return [row["loss_ce"] for row in history], loss


def main() -> int:
    options = arguments("wsd_or_cosine", __doc__)
    data = text(options.store, options.threads)
    swept = {arm: {rate: run(data, arm, rate, TUNING_SEED)[1] for rate in RATES} for arm in ARMS}
    best = {arm: min(losses, key=losses.__getitem__) for arm, losses in swept.items()}
    results = {arm: [run(data, arm, best[arm], seed) for seed in range(options.seeds)] for arm in ARMS}
    picture(
        "wsd_or_cosine",
        {f"{arm}, rate {best[arm]:g}": (range(STEPS), runs[0][0]) for arm, runs in results.items()},
        "optimiser step",
        "training loss, seed 0",
    )
    found = judge(
        "wsd_or_cosine",
        f"WSD's held-out loss is lower than cosine's at {STEPS * BATCH} tokens, rates tuned for both",
        [cosine[1] - wsd[1] for wsd, cosine in zip(results["wsd"], results["cosine"], strict=True)],
        "nats a token (cosine minus WSD)",
        rates=best,
        losses={arm: [round(loss, 4) for _, loss in runs] for arm, runs in results.items()},
    )
    show(found, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
