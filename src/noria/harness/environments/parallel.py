"""`parallel`: several chains of files at once, with so few steps that independent ones need helpers side by side.

`find apple pear` asks for the numbers at the ends of two chains; the trace may take between max(L) + 3 and sum(L)
critical steps (PARL, arXiv 2602.02276), so reading one chain after the other is too slow. Mixed in are single chains,
and chains of which one begins where the other ends (`find apple next`): there helpers only cost steps.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from itertools import pairwise

from noria.harness.environments.environment import Environment, belongs, call, distinct
from noria.harness.environments.lookup import WORDS
from noria.harness.environments.lookup import gold as follow_chain
from noria.harness.program import load_program
from noria.harness.reward import Parts, called_tools, count, parallel_parts
from noria.harness.rollout import Budget
from noria.harness.scripted import Policy
from noria.harness.subagents import ASSIGN, CREATE, SubAgents
from noria.harness.tools import READ
from noria.harness.trace_grader import TraceGrader, answer_evidence, right_answer, trace_grader
from noria.types import Message, Task, Trace, digest

FAMILY, DOMAIN = "agent_parallel", "agent"
KINDS = ("independent", "independent", "single", "dependent")
SHAPES: tuple[tuple[int, ...], ...] = (
    (3, 3),
    (3, 4),
    (4, 4),
    (2, 2, 2),
    (2, 3, 3),
    (3, 3, 3),
)  # lengths of the chains: max + 3 <= sum
DECOYS = 3


def generate(count: int, seed: int, split: str) -> list[Task]:
    ref = grader().ref

    def draw(generator: random.Random, split: str) -> Task | None:
        kind, lengths = generator.choice(KINDS), generator.choice(SHAPES)
        lengths = (sum(lengths[:2]),) if kind == "single" else lengths[:2] if kind == "dependent" else lengths
        words = generator.sample(WORDS, sum(lengths) + DECOYS)
        chains = [words[sum(lengths[:place]) :][:length] for place, length in enumerate(lengths)]
        if not belongs(split, FAMILY, *(chain[0] for chain in chains), *map(str, lengths)):
            return None
        numbers = [str(number) for number in generator.sample(range(10, 100), len(lengths) + DECOYS)]
        files = {
            decoy: f"value {number}" for decoy, number in zip(words[-DECOYS:], numbers[len(lengths) :], strict=True)
        }
        for chain, number in zip(chains, numbers, strict=False):
            files |= {name: f"see {after}" for name, after in pairwise(chain)} | {chain[-1]: f"value {number}"}
        if kind == "dependent":
            files[chains[0][-1]] += f" next {chains[1][0]}"
        starts = [chains[0][0], "next"] if kind == "dependent" else [chain[0] for chain in chains]
        serial, side_by_side = sum(lengths) + 1, max(lengths) + 3
        return Task(
            id=digest(FAMILY, *starts, *(f"{name}={files[name]}" for name in sorted(files))),
            messages=(Message("user", f"find {' '.join(starts)}"),),
            grader=ref,
            answer=" ".join(numbers[: len(lengths)]),
            family=FAMILY,
            domain=DOMAIN,
            difficulty=(sum(lengths) - 4) / 10 + (kind == "independent") / 2,
            hidden={
                "files": {name: files[name] for name in sorted(files)},
                "kind": kind,
                "steps": generator.randint(side_by_side, serial - 1) if kind == "independent" else serial,
            },
        )

    return distinct(draw, FAMILY, count, seed, split)


def gold(task: Task) -> Policy:
    """Hands out chains that do not depend on each other, and reads all others itself."""
    return _delegating() if task.hidden["kind"] == "independent" else _reading


def helper(task: Task) -> Policy:
    """A helper that follows any chain that it is asked for: `find apple`."""

    def policy(messages: Sequence[Message], seed: int) -> str:
        asked = messages[1].content.split()
        return follow_chain(messages[1:], seed) if len(asked) == 2 and asked[0] in ("find", "value") else "what"

    return policy


def _reading(messages: Sequence[Message], seed: int) -> str:
    """One chain after the other, one file a turn."""
    starts, said = messages[0].content.split()[1:], [m.content.split() for m in messages if m.role == "tool"]
    words = [words for words in said if words[:1] in (["see"], ["value"])]
    found = [line[1] for line in words if line[0] == "value"]
    if len(found) >= len(starts):
        return " ".join(found)
    last = words[-1] if words else []
    if last and last[0] == "see":
        return call("read", last[1])
    start = starts[len(found)]
    return call("read", last[3] if start == "next" and len(last) > 3 else start)


def _delegating(prompt: str = "find {}", answer: str = "") -> Policy:
    """A helper for each start in one reply; then the answer is what they said."""

    def policy(messages: Sequence[Message], seed: int) -> str:
        starts = messages[0].content.split()[1:]
        results = [m.content for m in messages if m.role == "tool" and not m.content.startswith(("created", "invalid"))]
        if len(results) >= len(starts):
            return answer or " ".join(results[-len(starts) :])
        made = sum(m.content.startswith("created") for m in messages)
        names = [f"h{made + place}" for place in range(len(starts))]
        return "".join(
            call(CREATE, name, "find") + call(ASSIGN, name, prompt.format(start))
            for name, start in zip(names, starts, strict=True)
        )

    return policy


def critical_reads(trace: Trace) -> int:
    """Critical steps, where a reply that reads several files takes as many: sum over the main agent's replies of its
    own steps + the most that one of its helpers took. So files can't be read side by side without helpers."""
    steps: dict[str, dict[int, int]] = {}  # agent -> its reply -> files that it read
    asked_by: dict[str, int] = {}  # helper -> the main agent's reply that gave it its task
    for place, node in enumerate(trace.nodes):
        mine = steps.setdefault(node.agent, {})
        if node.agent and node.parents:
            asked_by.setdefault(node.agent, node.parents[0])
        if node.call is not None:
            mine[place] = 0
        elif node.use is not None and mine and node.use.tool == READ.name:
            mine[max(mine)] += 1
    taken = {agent: {place: max(1, reads) for place, reads in mine.items()} for agent, mine in steps.items()}
    return sum(
        own + max((sum(taken[agent].values()) for agent, by in asked_by.items() if by == place), default=0)
        for place, own in taken.get("", {}).items()
    )


def grader() -> TraceGrader:
    return trace_grader(FAMILY, _judge, sys.modules[__name__])


def _judge(task: Task, trace: Trace) -> Parts:
    """Right and in time. PARL's r_parallel and r_finish are columns, for a trainer to weigh with annealed lambdas."""
    steps, allowed = critical_reads(trace), task.hidden["steps"]
    created, assigned = called_tools(trace).count(CREATE), int(count(trace, "assignments"))
    finished = min(int(count(trace, "finished_assignments")), assigned)
    return Parts(
        outcome=right_answer(task, trace) * (steps <= allowed),
        facts={
            **parallel_parts(created, assigned, finished),
            "right_answer": right_answer(task, trace),
            "critical_reads": float(steps),
            "steps_allowed": float(allowed),
            "assignments": float(assigned),
        },
        evidence=f"{answer_evidence(task, trace)}; {steps} steps of {allowed}, {task.hidden['kind']}",
    )


def _reading_all_in_one_reply(task: Task) -> Policy:
    """Every file at once, and the numbers of those that end a chain: right, but not in time."""
    names = sorted(task.hidden["files"])

    def policy(messages: Sequence[Message], seed: int) -> str:
        return "".join(call("read", name) for name in names) if len(messages) == 1 else task.answer

    return policy


ENVIRONMENT = Environment(
    name="parallel",
    about="two or three chains of files in so few steps that independent ones need helpers",
    generate=generate,
    tools=(READ,),
    grader=grader,
    budget=Budget(turns=14, tokens_per_turn=160, context=768),
    gold=gold,
    cheats={
        "guess": lambda task: lambda messages, seed: " ".join(["50"] * (len(messages[0].content.split()) - 1)),
        "helpers_for_show": lambda task: _delegating("find find", "50 50"),
        "ask_helpers_for_a_number": lambda task: _delegating("value 50"),
        "one_chain_only": lambda task: _delegating("find {}", task.answer.split()[0] + " 50"),
        "read_all_in_one_reply": _reading_all_in_one_reply,
        "create_for_ever": lambda task: lambda messages, seed: call(CREATE, f"h{len(messages)}", "find"),
        "two_answers": lambda task: lambda messages, seed: f"{task.answer} {task.answer}",
    },
    dials={
        "chains": "1 to 3",
        "length": "2 to 4 each, up to 8 alone",
        "steps": "max(L) + 3 to sum(L) where independent",
    },
    subagents=SubAgents(load_program("all_tools"), Budget(turns=8, tokens_per_turn=24, context=256)),
    helper=helper,
)
