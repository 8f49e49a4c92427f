"""Claim: an agent trained with flaky tools learns to do without them: with steady tools it then solves fewer tasks.

During RL a share of all calls fails as if the tool could not be reached; success is measured afterwards on held-out
tasks, with steady tools and with tools as flaky as the worst. Beside it what was learnt: calls a task, and how often a
failed call is made again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.nano_agent import UNREACHABLE, Agent, FlakyTools, start
from experiments.verdict import arguments, judge, picture, show
from noria.posttraining import GrpoConfig
from noria.sandbox import Sandbox
from noria.types import Trace

FAILING = (0.0, 0.05, 0.1, 0.2)
STEPS, PROMPTS, GROUP, RATE = 16, 10, 8, 5e-4  # as in recipes/nano.toml


def run(agent: Agent, share: float, seed: int, steps: int = STEPS) -> tuple[list[float], float, float, float, float]:
    """(rewards, success with steady tools, success with the flakiest, calls a task, share of failed calls repeated)."""
    model = agent.model()
    config = GrpoConfig(steps=steps, prompts=PROMPTS, group=GROUP, learning_rate=RATE)
    history = agent.train(model, config, seed, tools=FlakyTools(agent.tools, share, seed))
    steady = agent.attempts(model, seed)
    flaky = agent.attempts(model, seed, tools=FlakyTools(agent.tools, FAILING[-1], seed + 1))
    calls = sum(trace.facts["tool_calls"] for trace in steady) / len(steady)
    rewards = [row["reward"] for row in history]
    return rewards, agent.success(steady), agent.success(flaky), calls, repeated(flaky)


def repeated(traces: Sequence[Trace]) -> float:
    """Of the calls that could not be reached, the share that is followed by the same call again."""
    failed = again = 0
    for trace in traces:
        uses = [(node.use, node.message.content) for node in trace.nodes if node.use]
        for place, (use, text) in enumerate(uses):
            if text == UNREACHABLE:
                failed += 1
                after = uses[place + 1][0] if place + 1 < len(uses) else None
                again += after is not None and (after.tool, after.arguments) == (use.tool, use.arguments)
    return again / failed if failed else 0.0


def main() -> int:
    options = arguments("flaky_tools", __doc__)
    seeds = range(options.seeds)
    with Sandbox() as box:
        agent = start(box, options.store, options.threads)
        before = [agent.success(agent.attempts(agent.model(), seed)) for seed in seeds]
        runs = {share: [run(agent, share, seed) for seed in seeds] for share in FAILING}
    worst = FAILING[-1]
    picture(
        "flaky_tools",
        {f"{share:.0%} of calls fail": (range(STEPS), found[0][0]) for share, found in runs.items()},
        "step",
        "reward, seed 0",
    )
    rows = {
        f"{share:.0%} of calls failing": {
            "steady": _mean(found, 1),
            f"with {worst:.0%} failing": _mean(found, 2),
            "calls a task": _mean(found, 3),
            "failed calls made again": _mean(found, 4),
        }
        for share, found in runs.items()
    }
    found = judge(
        "flaky_tools",
        f"trained with {worst:.0%} of calls failing, the agent solves fewer held-out tasks with steady tools",
        [clean[1] - flaky[1] for clean, flaky in zip(runs[0.0], runs[worst], strict=True)],
        "share of held-out tasks",
        before=round(sum(before) / len(before), 3),
        **rows,
    )
    show(found, options.json)
    return 0


def _mean(runs: Sequence[tuple[list[float], float, float, float, float]], column: int) -> float:
    return round(sum(float(row[column]) for row in runs) / len(runs), 3)  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
