"""Claim: at equal rollouts GRPO reaches at least what PPO with a critic does, for less memory and time.

R1's supplement (arXiv 2501.12948) found PPO at lambda 1 nearly equal to GRPO and at 0.95 considerably worse. Here each
trains at its own best of a few rates (chosen on another seed), from the same cold start, on equal prompts and samples.
The verdict is on accuracy; memory and seconds of both stand beside it.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Literal

import torch

from experiments.nano_rl import Start, start
from experiments.verdict import arguments, judge, picture, show
from noria.evals.statistics import mean_interval
from noria.posttraining import GrpoConfig, PpoConfig
from noria.training import LoopConfig, Progress
from noria.training.critic import attach_critic

Algorithm = Literal["grpo", "ppo"]
STEPS, PROMPTS, GROUP, WARMUP = 30, 16, 8, 3
RATES = (5e-4, 1e-3, 2e-3)
TUNING_SEED = 1000


@dataclass(frozen=True)
class Outcome:
    rewards: list[float]
    accuracy: float
    seconds: float
    sampled_tokens: float


def run(chain: Start, algorithm: Algorithm, rate: float, seed: int, steps: int = STEPS) -> Outcome:
    model = chain.model()
    shared = {"steps": steps, "prompts": PROMPTS, "group": GROUP, "learning_rate": rate}
    config: GrpoConfig | PpoConfig
    if algorithm == "ppo":
        config = PpoConfig.model_validate({**shared, "critic_warmup": min(WARMUP, steps - 1)})
    else:
        config = GrpoConfig.model_validate(shared)
    started = time.perf_counter()
    history = chain.train(model, config, seed, progress=Progress())
    seconds = time.perf_counter() - started
    tokens = sum(row["reply_tokens"] for row in history) * PROMPTS * GROUP
    accuracy = chain.accuracy(chain.replies(model, seed))
    return Outcome([row["reward"] for row in history], accuracy, seconds, tokens)


def state_bytes(chain: Start, algorithm: Algorithm) -> int:
    """Weights, gradients and moments that training holds: what grows with the model, counted and not sampled."""
    model = chain.model()
    if algorithm == "ppo":
        attach_critic(model, own_trunk=True)
    optimizer = LoopConfig(steps=1, learning_rate=0.1).optimizer(model)
    optimizer.fill_state()
    moments = (value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value))
    weights = [(parameter.numel() * parameter.element_size()) for parameter in model.parameters()]
    return 2 * sum(weights) + sum(value.numel() * value.element_size() for value in moments)


def main() -> int:
    options = arguments("ppo_or_grpo", __doc__)
    chain = start(options.store)
    names: tuple[Algorithm, ...] = ("grpo", "ppo")
    swept = {name: {rate: run(chain, name, rate, TUNING_SEED).accuracy for rate in RATES} for name in names}
    best = {name: max(found, key=found.__getitem__) for name, found in swept.items()}
    results = {name: [run(chain, name, best[name], seed) for seed in range(options.seeds)] for name in names}
    picture(
        "ppo_or_grpo",
        {f"{name}, rate {best[name]:g}": (range(STEPS), runs[0].rewards) for name, runs in results.items()},
        "rollout step",
        "reward, seed 0",
    )
    pairs = list(zip(results["grpo"], results["ppo"], strict=True))
    found = judge(
        "ppo_or_grpo",
        f"after {STEPS} equal rollout steps GRPO's held-out accuracy is above PPO's",
        [grpo.accuracy - ppo.accuracy for grpo, ppo in pairs],
        "accuracy (GRPO minus PPO)",
        rates=best,
        swept={name: {str(rate): round(value, 4) for rate, value in found.items()} for name, found in swept.items()},
        accuracies={name: [round(run.accuracy, 4) for run in runs] for name, runs in results.items()},
        seconds_ratio=mean_interval([ppo.seconds / grpo.seconds for grpo, ppo in pairs]).as_json(),
        seconds={name: [round(run.seconds, 1) for run in runs] for name, runs in results.items()},
        sampled_tokens={name: [round(run.sampled_tokens) for run in runs] for name, runs in results.items()},
        state_megabytes={name: round(state_bytes(chain, name) / 1e6, 2) for name in names},
    )
    show(found, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
