"""Claim: without a cold start, RL's replies are less readable: they loop, mix languages or never close their thinking.

R1-Zero (arXiv 2501.12948, section 2.2) reasoned but mixed languages and was hard to read, which is why R1 starts cold.
Equal RL steps from the base model and from the cold-started one; replies to held-out tasks are sorted by the filters of
rejection sampling. What each arm says is printed, so that a reader can see it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from statistics import mean

from experiments.nano_rl import Start, start
from experiments.verdict import arguments, judge, picture, show
from noria.grading.monitors import distinct_n, language_mix
from noria.posttraining import GrpoConfig
from noria.posttraining.rejection import is_repetitive
from noria.types import THINK_OPEN, Trace, split_thinking

STEPS, PROMPTS, GROUP, RATE = 30, 16, 8, 1e-3
MIXED = 0.05  # share of letters outside the Latin script, as in the filters


def fault(trace: Trace) -> str:
    """The first thing that makes a reply hard to read; empty for a readable one. Right or wrong is not asked."""
    thinking, answer = split_thinking(trace.reply)
    if is_repetitive(thinking or trace.reply):
        return "repetitive"
    if language_mix([trace.reply]) > MIXED:
        return "mixed_language"
    if trace.outcome != "finished":
        return "truncated"
    return "" if trace.reply.startswith(THINK_OPEN) and thinking and answer else "no_thinking_or_answer"


def shares(traces: Sequence[Trace]) -> dict[str, float]:
    counts = Counter(fault(trace) or "readable" for trace in traces)
    return {name: round(count / len(traces), 4) for name, count in sorted(counts.items())}


def distinct_bigrams(traces: Sequence[Trace]) -> float:
    """Distinct over all bigrams of sampled tokens within each reply, averaged: towards 0 where replies loop."""
    replies = [node.call.token_ids for trace in traces for node in trace.nodes if node.call]
    return mean([distinct_n([reply], 2) for reply in replies if len(reply) > 1])


def run(chain: Start, cold_started: bool, seed: int, steps: int = STEPS) -> tuple[list[float], float, list[Trace]]:
    """(rewards, held-out accuracy, held-out replies)."""
    model = chain.model(cold_started)
    config = GrpoConfig(steps=steps, prompts=PROMPTS, group=GROUP, learning_rate=RATE, advantage="std")
    history = chain.train(model, config, seed)
    traces = chain.replies(model, seed)
    return [row["reward"] for row in history], chain.accuracy(traces), traces


def main() -> int:
    options = arguments("cold_start", __doc__)
    chain = start(options.store)
    names = {True: "cold start", False: "no cold start"}
    results = {cold: [run(chain, cold, seed) for seed in range(options.seeds)] for cold in (True, False)}
    picture(
        "cold_start",
        {names[cold]: (range(STEPS), runs[0][0]) for cold, runs in results.items()},
        "step",
        "reward, seed 0",
    )
    unreadable = {
        cold: [sum(bool(fault(trace)) for trace in traces) / len(traces) for _, _, traces in runs]
        for cold, runs in results.items()
    }
    found = judge(
        "cold_start",
        f"after {STEPS} RL steps more held-out replies are hard to read without a cold start than with one",
        [without - given for without, given in zip(unreadable[False], unreadable[True], strict=True)],
        "share of replies (without minus with)",
        accuracies={names[cold]: [round(accuracy, 4) for _, accuracy, _ in runs] for cold, runs in results.items()},
        faults={names[cold]: shares(runs[0][2]) for cold, runs in results.items()},
        distinct_bigrams={
            names[cold]: [round(distinct_bigrams(traces), 4) for _, _, traces in runs] for cold, runs in results.items()
        },
        foreign_letters={
            names[cold]: [round(language_mix([trace.reply for trace in traces]), 4) for _, _, traces in runs]
            for cold, runs in results.items()
        },
        before={names[cold]: shares(chain.replies(chain.model(cold), 0)) for cold in names},
        replies={names[cold]: [trace.reply[:160] for trace in runs[0][2][:200:50]] for cold, runs in results.items()},
    )
    show(found, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
