"""Claim: RL amplifies noise in its reward: at 30% flipped verdicts it loses more of its gain than of its signal.

A verdict flipped with probability p leaves a share 1 - 2p of the expected advantage, 0.4 at p = 0.3: if what is gained
falls below that share of the gain from clean verdicts, noise is amplified; if it stays above, it is averaged away.
Beside it a coarse reward, which accepts every answer whose first character is right: is its flaw learnt?
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import replace

from experiments.nano_rl import Start, start
from experiments.verdict import arguments, judge, picture, show
from noria.evals.benchmarks import grade as exact_grade
from noria.posttraining import Grade, GrpoConfig
from noria.types import Score, Task, Trace, seed_of

FLIPPED = (0.0, 0.1, 0.2, 0.3)
STEPS, PROMPTS, GROUP, RATE = 25, 16, 8, 1e-3


def noisy(share: float, seed: int) -> Grade:
    """The exact graders with `share` of the verdicts turned round, each a function of the seed and the trace's own."""

    def grade(tasks: Sequence[Task], traces: Sequence[Trace]) -> list[Score]:
        scores = exact_grade(tasks, traces)
        flips = [random.Random(seed_of("flip", seed, trace.id)).random() < share for trace in traces]
        return [
            replace(score, value=1.0 - score.value) if flip and score.value is not None else score
            for score, flip in zip(scores, flips, strict=True)
        ]

    return grade


def coarse(tasks: Sequence[Task], traces: Sequence[Trace]) -> list[Score]:
    """1 where the answer's first character is the right one."""
    scores = exact_grade(tasks, traces)
    alike = [trace.answer[:1] == task.answer[:1] for task, trace in zip(tasks, traces, strict=True)]
    return [
        score if score.value is None else replace(score, value=float(same))
        for score, same in zip(scores, alike, strict=True)
    ]


def run(chain: Start, grade: Grade, seed: int, steps: int = STEPS) -> tuple[list[float], float, float]:
    """(rewards, exact held-out accuracy, coarse held-out reward)."""
    model = chain.model()
    config = GrpoConfig(steps=steps, prompts=PROMPTS, group=GROUP, learning_rate=RATE, advantage="std")
    history = chain.train(model, config, seed, grade)
    traces = chain.replies(model, seed)
    accepted = [score.value or 0.0 for score in coarse(chain.heldout, traces)]
    return [row["reward"] for row in history], chain.accuracy(traces), sum(accepted) / len(accepted)


def main() -> int:
    options = arguments("noisy_reward", __doc__)
    chain = start(options.store)
    seeds = range(options.seeds)
    before = [chain.accuracy(chain.replies(chain.model(), seed)) for seed in seeds]
    flipped = {share: [run(chain, noisy(share, seed), seed) for seed in seeds] for share in FLIPPED}
    first_character = [run(chain, coarse, seed) for seed in seeds]
    gains = {
        share: [accuracy - start for (_, accuracy, _), start in zip(runs, before, strict=True)]
        for share, runs in flipped.items()
    }
    picture(
        "noisy_reward",
        {f"{share:.0%} flipped": (range(STEPS), runs[0][0]) for share, runs in flipped.items()},
        "step",
        "reward as graded, seed 0",
    )
    worst = FLIPPED[-1]
    found = judge(
        "noisy_reward",
        f"with {worst:.0%} of verdicts flipped, RL gains less than {1 - 2 * worst:.1f} of what it gains with none",
        [(1 - 2 * worst) * clean - noise for clean, noise in zip(gains[0.0], gains[worst], strict=True)],
        "accuracy (share of the clean gain minus the gain)",
        premise=gains[0.0],  # where clean verdicts teach nothing, noise has nothing to amplify
        before=[round(value, 4) for value in before],
        gains={f"{share:.0%}": [round(value, 4) for value in values] for share, values in gains.items()},
        coarse_gain=[round(run[1] - start, 4) for run, start in zip(first_character, before, strict=True)],
        coarse_only=[round(run[2] - run[1], 4) for run in first_character],
    )
    show(found, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
