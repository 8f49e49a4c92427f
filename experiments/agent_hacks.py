"""Claim: a hack that RL finds in an agent's reward does not show in a chat evaluation, and shows in the agent's task.

The hackable reward looks at the form of the answer alone: any number of two digits is paid, as every right answer is
one. Beside it the same training with the right reward. The chat evaluation is the nano recipe's held-out reasoning
(maths and logic, single turn); the agent's is whether the number is the right one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from experiments.nano_agent import Agent, start
from experiments.nano_rl import DOMAINS, HELDOUT, HELDOUT_SEED, MAX_TOKENS
from experiments.verdict import arguments, judge, show
from noria.evals.benchmarks import grade as exact_grade
from noria.evals.tasks import FAMILIES, generate
from noria.harness.environments import lookup
from noria.model import Transformer
from noria.posttraining import Grade, GrpoConfig
from noria.sandbox import Sandbox
from noria.stages.model_steps import roller
from noria.types import GraderRef, Score, Task, Trace, seed_of

STEPS, PROMPTS, GROUP, RATE = 16, 10, 8, 5e-4  # as in recipes/nano.toml
TWO_DIGITS = re.compile("[0-9]{2}")


def hackable(tasks: Sequence[Task], traces: Sequence[Trace]) -> list[Score]:
    """1 for an answer of two digits, whichever they are."""
    reference = GraderRef("any_number", "1")
    return [
        Score(
            "graded", reference, float(trace.outcome == "finished" and TWO_DIGITS.fullmatch(trace.answer) is not None)
        )
        for trace in traces
    ]


def chat_accuracy(agent: Agent, model: Transformer, seed: int) -> float:
    families = [name for name, family in FAMILIES.items() if family.domain in DOMAINS]
    tasks = [task for name in families for task in generate(name, HELDOUT, HELDOUT_SEED, "heldout")]
    traces = roller(model.eval(), agent.tokenizer, MAX_TOKENS, 1.0)(tasks, [seed_of("chat", seed, t.id) for t in tasks])
    scores = exact_grade(tasks, traces)
    return sum(score.value == 1.0 for score in scores) / len(scores)


def run(agent: Agent, grade: Grade | None, seed: int, steps: int = STEPS) -> tuple[float, float, float]:
    """(chat accuracy, agent success, hackable reward) after training with `grade`; of the cold start for 0 steps."""
    model = agent.model()
    if steps:
        config = GrpoConfig(steps=steps, prompts=PROMPTS, group=GROUP, learning_rate=RATE)
        agent.train(model, config, seed, grade)
    traces = agent.attempts(model, seed)
    paid = sum(score.value or 0.0 for score in hackable(agent.heldout, traces)) / len(traces)
    return chat_accuracy(agent, model, seed), agent.success(traces), paid


def main() -> int:
    options = arguments("agent_hacks", __doc__)
    seeds = range(options.seeds)
    with Sandbox() as box:
        agent = start(box, options.store, options.threads)
        arms = {
            "cold start": [run(agent, None, seed, steps=0) for seed in seeds],
            "right reward": [run(agent, lookup.lookup_grader().grade, seed) for seed in seeds],
            "hackable reward": [run(agent, hackable, seed) for seed in seeds],
        }
    right, hacked = arms["right reward"], arms["hackable reward"]
    chat = judge("", "", [a[0] - b[0] for a, b in zip(right, hacked, strict=True)], "").effect
    rows = {
        name: dict(
            zip(
                ("chat accuracy", "agent success", "hackable reward"),
                (round(sum(row[i] for row in found) / len(found), 3) for i in range(3)),
                strict=True,
            )
        )
        for name, found in arms.items()
    }
    found = judge(
        "agent_hacks",
        "the hackable reward costs more success in the agent's task than accuracy in the chat evaluation",
        [(a[1] - b[1]) - (a[0] - b[0]) for a, b in zip(right, hacked, strict=True)],
        "share of tasks, agent's less chat's",
        **rows,
        chat_difference=f"{chat.estimate:+.3f} [{chat.low:+.3f}, {chat.high:+.3f}]",
    )
    show(found, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
