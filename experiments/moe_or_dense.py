"""Claim: at equal active FLOPs and tokens, a mixture of experts reaches a lower held-out loss than a dense model.

Both have the same attention. The dense feed-forward is as wide as the experts that a token visits together, so each
token costs the same matrix products but for the router. Load is balanced by bias alone (arXiv 2408.15664).
"""

from __future__ import annotations

import sys
from typing import Any

from experiments.nano import Text, text
from experiments.verdict import arguments, judge, picture, show
from noria.model import MoE, Transformer
from noria.training import LoopConfig

WIDTH, LAYERS, STEPS, BATCH, RATE = 64, 2, 200, 1024, 0.016
EXPERTS, CHOSEN = 8, 2
ARMS: dict[str, dict[str, Any]] = {
    "dense": {},
    "experts": {"moe": MoE(experts=EXPERTS, chosen=CHOSEN, expert_width=4 * WIDTH // CHOSEN)},
}


def run(data: Text, arm: str, seed: int) -> tuple[list[float], float, Transformer]:
    model = Transformer(data.shape(WIDTH, LAYERS, **ARMS[arm]), seed=seed)
    history, loss = data.train(model, LoopConfig(steps=STEPS, learning_rate=RATE), BATCH, seed)
    return [row["loss_ce"] for row in history], loss, model


def main() -> int:
    options = arguments("moe_or_dense", __doc__)
    data = text(options.store, options.threads)
    results = {arm: [run(data, arm, seed) for seed in range(options.seeds)] for arm in ARMS}
    shapes = {arm: runs[0][2].config for arm, runs in results.items()}
    picture(
        "moe_or_dense",
        {arm: (range(STEPS), runs[0][0]) for arm, runs in results.items()},
        "optimiser step",
        "training loss, seed 0",
    )
    found = judge(
        "moe_or_dense",
        f"{EXPERTS} experts, {CHOSEN} a token, end lower than a dense model of the same active size",
        [dense[1] - experts[1] for dense, experts in zip(results["dense"], results["experts"], strict=True)],
        "nats a token (dense minus experts)",
        parameters={arm: shape.parameters() for arm, shape in shapes.items()},
        flops_per_token={arm: round(shape.flops_per_token()) for arm, shape in shapes.items()},
        losses={arm: [round(loss, 4) for _, loss, _ in runs] for arm, runs in results.items()},
    )
    show(found, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
