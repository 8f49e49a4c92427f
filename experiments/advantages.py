"""Claim: dividing a group's advantages by its standard deviation learns faster than the mean alone.

The original GRPO divides (arXiv 2402.03300); Dr. GRPO (arXiv 2503.20783) does not, as it weighs very easy and very hard
prompts up. Ranks within the group stand beside them. Right or wrong rewards, one rate for all, which a Muon step makes
nearly blind to the advantages' scale, equal prompts and sampling seeds.
"""

from __future__ import annotations

import sys
from typing import Literal

from experiments.nano_rl import Start, start
from experiments.verdict import arguments, judge, picture, show
from noria.evals.statistics import mean_interval
from noria.posttraining import GrpoConfig

FORMS: tuple[Literal["mean", "std", "rank"], ...] = ("mean", "std", "rank")
STEPS, PROMPTS, GROUP, RATE = 40, 16, 8, 1e-3


def run(chain: Start, form: Literal["mean", "std", "rank"], seed: int, steps: int = STEPS) -> tuple[list[float], float]:
    model = chain.model()
    config = GrpoConfig(steps=steps, prompts=PROMPTS, group=GROUP, learning_rate=RATE, advantage=form)
    history = chain.train(model, config, seed)
    return [row["reward"] for row in history], chain.accuracy(chain.replies(model, seed))


def main() -> int:
    options = arguments("advantages", __doc__)
    chain = start(options.store)
    before = chain.accuracy(chain.replies(chain.model(), 0))
    results = {form: [run(chain, form, seed) for seed in range(options.seeds)] for form in FORMS}
    picture(
        "advantages", {form: (range(STEPS), runs[0][0]) for form, runs in results.items()}, "step", "reward, seed 0"
    )
    accuracies = {form: [accuracy for _, accuracy in runs] for form, runs in results.items()}

    def over_mean(form: str) -> list[float]:
        return [other - mean for other, mean in zip(accuracies[form], accuracies["mean"], strict=True)]

    found = judge(
        "advantages",
        f"after {STEPS} steps the held-out accuracy is higher with advantages over the group's deviation than without",
        over_mean("std"),
        "accuracy (std minus mean)",
        before=round(before, 4),
        accuracies={form: [round(value, 4) for value in values] for form, values in accuracies.items()},
        rank_minus_mean=mean_interval(over_mean("rank")).as_json(),
        last_rewards={form: [round(sum(r[-5:]) / 5, 4) for r, _ in runs] for form, runs in results.items()},
    )
    show(found, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
