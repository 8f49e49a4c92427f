"""Claim: one silent bit flip in a weight costs an unguarded run its loss, and a guarded one nothing.

Halfway, one bit of one weight changes in memory. The unguarded run is the same steps without checksums, replay or
anchors (a gradient that is not finite is left out, as everywhere). The effect is its held-out loss minus that of the
guarded run, for the highest bit of the exponent; the other bits are told beside it. A model whose loss is no number is
worth a uniform guess, the log of the vocabulary. A guarded run that does not end in the bits of the undisturbed one
makes the experiment fail.
"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path

import torch

from experiments.nano import Text, text
from experiments.verdict import arguments, judge, picture, show
from noria.model import Transformer
from noria.training import Annotated, GuardConfig, LoopConfig, Objective, Progress, train
from noria.training.loop import optimiser_step
from noria.training.pretraining import batch_at

WIDTH, LAYERS, STEPS, BATCH, AT = 64, 2, 200, 1024, 100
CONFIG = LoopConfig(steps=STEPS, learning_rate=0.016, guard=GuardConfig(spikes=True, make_up=True, anchor_steps=50))
# Of a weight near 0.05 these multiply by 2^128 (the exponent's highest bit) and by 16, and change the last digit.
HIGHEST, MIDDLE, LOWEST = 30, 25, 0
WINDOW = 20


def flip(model: Transformer, bit: int) -> None:
    words = model.get_parameter("blocks.0.up.weight").data.view(torch.int32)
    words[0, 0] ^= 1 << bit


def unguarded(data: Text, seed: int, bit: int) -> tuple[list[float], float]:
    """(training losses, held-out loss) of the bare steps."""
    model, stream = Transformer(data.shape(WIDTH, LAYERS), seed=seed), data.stream(BATCH, seed)
    optimizer, losses = CONFIG.optimizer(model), []
    model.train()
    for step in range(STEPS):
        if step == AT:
            flip(model, bit)
        row = optimiser_step(model, optimizer, batch_at(stream, step), CONFIG, CONFIG.rate(step), Objective())
        losses.append(row["loss_ce"])
    return losses, data.loss(model.eval())


def guarded(data: Text, seed: int, bit: int | None) -> tuple[list[float], float]:
    """The same through the loop, with its guard and checkpoints; without a `bit` undisturbed."""
    model, stream = Transformer(data.shape(WIDTH, LAYERS), seed=seed), data.stream(BATCH, seed)
    waiting = [] if bit is None else [bit]

    def annotate(step: int) -> Annotated:
        if step == AT and waiting:
            flip(model, waiting.pop())
        return Annotated(batch_at(stream, step))

    with tempfile.TemporaryDirectory(prefix="noria-bit-flip-") as folder:
        history = train(model, annotate, CONFIG, Progress(Path(folder)))
    return [row["loss_ce"] for row in history], data.loss(model)


def smooth(losses: list[float], worst: float) -> list[float]:
    found = [loss if math.isfinite(loss) else worst for loss in losses]
    return [sum(found[end - WINDOW : end]) / WINDOW for end in range(WINDOW, len(found) + 1)]


def main() -> int:
    options = arguments("silent_bit_flip", __doc__)
    data = text(options.store, options.threads)
    bits = (HIGHEST, MIDDLE, LOWEST)
    seeds = range(options.seeds)
    calm = [guarded(data, seed, None) for seed in seeds]
    watched = {bit: [guarded(data, seed, bit) for seed in seeds] for bit in bits}
    bare = {bit: [unguarded(data, seed, bit) for seed in seeds] for bit in bits}
    worst = math.log(data.vocab_size)
    lines = {
        "unguarded, middle bit": bare[MIDDLE][0][0],
        "guarded, highest bit": watched[HIGHEST][0][0],
        "unguarded, highest bit (no number: drawn as a guess)": bare[HIGHEST][0][0],
    }
    picture(
        "silent_bit_flip",
        {name: (range(WINDOW - 1, STEPS), smooth(losses, worst)) for name, losses in lines.items()},
        "optimiser step",
        f"training loss, seed 0, mean of {WINDOW} steps",
    )
    destroyed = {bit: sum(not math.isfinite(loss) for _, loss in runs) for bit, runs in bare.items()}
    found = judge(
        "silent_bit_flip",
        "a flip of the highest exponent bit leaves an unguarded run with a higher held-out loss",
        [
            (loose[1] if math.isfinite(loose[1]) else worst) - safe[1]
            for loose, safe in zip(bare[HIGHEST], watched[HIGHEST], strict=True)
        ],
        "nats a token (unguarded minus guarded)",
        destroyed=destroyed,
        unguarded={bit: [round(loss, 4) for _, loss in runs] for bit, runs in bare.items()},
        undisturbed=[round(loss, 4) for _, loss in calm],
        guarded_in_the_undisturbed_bits=all(runs == calm for runs in watched.values()),
    )
    show(found, options.json)
    return 0 if all(runs == calm for runs in watched.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
