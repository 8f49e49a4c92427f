"""Claim: at fixed weights the harness program alone moves an agent's success, on and off.

The cold-started agent of the nano recipe on held-out tasks under every program that comes with noria, and under its own
program with the bootstrap: a snapshot of the workspace in the first prompt. The model saw only the plain history in
training: what this measures is how far from it each program leads. With `--model FOLDER` the same for a chat model.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from experiments.nano_agent import TURNS, Agent, start
from experiments.verdict import arguments_parser, judge, show
from noria.data.chat_tokenizer import load_chat_tokenizer
from noria.harness import Budget, Program, Sampling, bootstrapped, load_program, rollout
from noria.inference import Engine
from noria.model import load_model
from noria.sandbox import Sandbox
from noria.types import Trace, seed_of

PROGRAMS = ("files", "context", "memory", "planner")
OWN = "files"
CHAT_TASKS, CHAT_TOKENS, CHAT_TURNS = 40, 48, 6


def programs() -> dict[str, Program]:
    found = {name: load_program(name) for name in PROGRAMS}
    return found | {f"{OWN} + bootstrap": bootstrapped(found[OWN])}


def nano(agent: Agent, program: Program, seed: int) -> float:
    turns = TURNS + (program.name == "planner")  # its plan takes one
    return agent.success(agent.attempts(agent.model(), seed, program=program, turns=turns))


def chat_model(agent: Agent, folder: Path, program: Program, seed: int) -> list[Trace]:
    """The first held-out tasks by an imported model, whose prompts tell of the tools."""
    tokenizer = load_chat_tokenizer(folder)
    engine = Engine(load_model(folder), tokenizer.end, precision="bfloat16", max_rows=CHAT_TASKS, context=2048)
    tasks = agent.heldout[:CHAT_TASKS]
    budget = Budget(turns=CHAT_TURNS, tokens_per_turn=CHAT_TOKENS, context=2048)
    seeds = [seed_of("chat", seed, task.id) for task in tasks]
    return rollout(
        tasks, seeds, engine, tokenizer, program, budget=budget, tools=agent.tools, sampling=Sampling(temperature=0.7)
    )


def chat_success(agent: Agent, traces: list[Trace]) -> float:
    """The number anywhere in the answer counts: a chat model says sentences."""
    pairs = zip(agent.heldout, traces, strict=False)
    return sum(trace.outcome == "finished" and task.answer in trace.answer for task, trace in pairs) / len(traces)


def main() -> int:
    parser = arguments_parser("harness_spread", __doc__)
    parser.add_argument("--model", type=Path, help="a chat model's folder, instead of the nano agent")
    options = parser.parse_args()
    seeds = range(options.seeds)
    success: Mapping[str, list[float]]
    with Sandbox() as box:
        agent = start(box, options.store, options.threads)
        if options.model is None:
            success = {name: [nano(agent, program, seed) for seed in seeds] for name, program in programs().items()}
        else:
            success = {
                name: [chat_success(agent, chat_model(agent, options.model, program, seed)) for seed in seeds]
                for name, program in programs().items()
            }
    means = {name: sum(values) / len(values) for name, values in success.items()}
    others = {name: mean for name, mean in means.items() if name != OWN}
    farthest = max(others, key=lambda name: abs(others[name] - means[OWN]))
    sign = 1.0 if means[farthest] < means[OWN] else -1.0
    found = judge(
        "harness_spread",
        f"success under {OWN} and under {farthest}, the program farthest from it, differs at fixed weights",
        [sign * (own - other) for own, other in zip(success[OWN], success[farthest], strict=True)],
        "share of held-out tasks",
        **{name: round(mean, 3) for name, mean in means.items()},
        spread=round(max(means.values()) - min(means.values()), 3),
    )
    show(found, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
