"""Claim: the system recipe's interval of the final loss covers the outcome in at least four of five seeds.

For each seed the ladder, the plan and the base model of recipes/nano.toml are made through the executor, so a second
run of this experiment reuses them all.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from experiments.nano import RECIPE
from experiments.verdict import PICTURES, arguments
from noria.artifacts import Executor, Store
from noria.assembly import build
from noria.recipe import load

STEPS = ("registry", "raw_data", "corpus", "tokenizer", "shards", "ladder", "plan", "base_model")


def outcome(store: Store, seed: int, threads: int) -> tuple[float, float, float, float]:
    """(predicted, low, high, measured) of one seed."""
    recipe = load(RECIPE, [f"run.seed={seed}", f"run.threads={threads}"])
    steps = {step.name: step for step in build(recipe, 1, store)}
    made = Executor(store, f"loss_prediction_{seed}").run([steps[name] for name in STEPS])
    heldout = json.loads((made["base_model"].content / "heldout.json").read_text())
    predicted = heldout["predicted"]
    return predicted["mean"], predicted["low"], predicted["high"], heldout["loss"]


def draw(found: list[tuple[float, float, float, float]]) -> None:
    """docs/pictures/loss_prediction.png: each seed's interval and outcome."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    seeds = range(len(found))
    mean, low, high, measured = zip(*found, strict=True)
    below, above = ([abs(m - end) for m, end in zip(mean, ends, strict=True)] for ends in (low, high))
    axes.errorbar(seeds, mean, yerr=(below, above), fmt="o", capsize=6, label="predicted, 95%")
    axes.plot(seeds, measured, "x", markersize=9, markeredgewidth=2, label="measured")
    axes.set(xlabel="seed", ylabel="held-out loss, nats a token", xticks=list(seeds))
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    PICTURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURES / "loss_prediction.png", dpi=110)
    pyplot.close(figure)


def main() -> int:
    options = arguments("loss_prediction", __doc__)
    store = Store(Path(options.store))
    found = [outcome(store, seed, options.threads) for seed in range(options.seeds)]
    covered = sum(low <= measured <= high for _, low, high, measured in found)
    half_widths = [(high - low) / 2 / mean for mean, low, high, _ in found]
    verdict = "reproduced" if covered >= 0.8 * len(found) else "absent"
    draw(found)
    if options.json:
        print(json.dumps({"experiment": "loss_prediction", "verdict": verdict, "covered": covered, "seeds": found}))
        return 0
    for seed, (mean, low, high, measured) in enumerate(found):
        print(f"seed {seed}: predicted {mean:.4f} [{low:.4f}, {high:.4f}], measured {measured:.4f}")
    print(f"{verdict}: {covered} of {len(found)} covered; half-widths " + ", ".join(f"{w:.1%}" for w in half_widths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
