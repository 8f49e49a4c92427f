"""`agent_lookup`: follow a chain of files to a number. The smallest task that can't be solved in one turn.

The prompt says `find apple`; the file `apple` holds `see pear` or `value 42`; other files are decoys of the same form.
A chain of h hops needs h calls of `read`. Small enough for a model of a million parameters, and a guess is right one
time in ninety.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

from noria.harness.environments.environment import Environment, belongs, call, distinct
from noria.harness.reward import Parts
from noria.harness.rollout import Budget
from noria.harness.tools import FILE_TOOLS
from noria.harness.trace_grader import TraceGrader, answer_evidence, right_answer, trace_grader
from noria.types import GraderRef, Message, Task, Trace, digest

FAMILY, DOMAIN = "agent_lookup", "agent"

# train and heldout share their words and hops but never a chain of keys; the other two hold out one thing more.
Split = Literal["train", "heldout", "heldout_keys", "heldout_hops"]

WORDS = (
    "apple", "pear", "table", "chair", "river", "stone", "house", "garden", "window", "paper", "music", "water",
    "bread", "horse", "bird", "fish", "tree", "door", "road", "hand", "book", "ship", "king", "gold",
    "salt", "wine", "hill", "wall", "fire", "star", "moon", "rain", "snow", "wind", "corn", "milk",
)  # fmt: skip
HELDOUT_WORDS = (
    "city",
    "field",
    "night",
    "stick",
    "sword",
    "heart",
    "voice",
    "light",
    "earth",
    "power",
    "tower",
    "sheep",
)
TRAIN_HOPS = (1, 2, 2)  # two of three tasks need a second call
HELDOUT_HOPS = (3,)
GUESS = "50"
FILES = range(4, 6 + 1)  # how many files a workspace has


def generate(count: int, seed: int, split: Split, grader: GraderRef) -> list[Task]:
    """`count` distinct tasks; equal arguments give equal tasks."""
    return distinct(lambda generator, _: _draw(generator, split, grader), FAMILY, count, seed, split)


def gold(messages: Sequence[Message], seed: int) -> str:
    """The right reply to what is seen: a policy for `ScriptedSampler`."""
    said = [message.content.split() for message in messages if message.role != "assistant"]
    last = next(words for words in reversed(said) if words and words[0] in ("find", "see", "value"))
    return last[1] if last[0] == "value" else call("read", last[1])  # "find apple" and "see apple" alike


def hasty(completes: float) -> Callable[[Sequence[Message], int], str]:
    """`gold`, but each time the chain goes on it gives up with probability 1 - `completes` and says a middling number.

    Demonstrations of it teach the form of a call and, wrongly, to stop early: a bias for RL to remove. The number is
    always the same: with `completes` below one half, giving up is then also what a greedy policy does. (Guesses spread
    over ninety numbers would leave going on the likeliest single reply, and a greedy evaluation would see no bias.)
    """

    def policy(messages: Sequence[Message], seed: int) -> str:
        if messages[-1].content.startswith("see ") and random.Random(seed).random() >= completes:
            return GUESS
        return gold(messages, seed)

    return policy


def _draw(generator: random.Random, split: Split, grader: GraderRef) -> Task | None:
    hops = generator.choice(HELDOUT_HOPS if split == "heldout_hops" else TRAIN_HOPS)
    words = HELDOUT_WORDS if split == "heldout_keys" else WORDS
    names = generator.sample(words, max(hops + 1, generator.choice(FILES)))
    chain, decoys = names[:hops], names[hops:]
    numbers = [str(number) for number in generator.sample(range(10, 100), len(names))]
    files = {name: f"see {after}" for name, after in pairwise(chain)}
    files[chain[-1]] = f"value {numbers[0]}"
    for name, number in zip(decoys, numbers[1:], strict=False):
        points = len(decoys) > 1 and generator.random() < 0.4
        files[name] = f"see {generator.choice([d for d in decoys if d != name])}" if points else f"value {number}"
    if split in ("train", "heldout") and not belongs(split, FAMILY, *chain):
        return None
    return Task(
        id=digest(FAMILY, *chain, *(f"{name}={files[name]}" for name in sorted(files))),
        messages=(Message("user", f"find {chain[0]}"),),
        grader=grader,
        answer=numbers[0],
        family=FAMILY,
        domain=DOMAIN,
        difficulty=(hops - 1) / 2,
        hidden={"files": {name: files[name] for name in sorted(files)}, "chain": chain},
    )


def lookup_grader() -> TraceGrader:
    """Was the number right, and what did invalid calls cost."""
    return trace_grader(FAMILY, _judge, sys.modules[__name__])


def _judge(task: Task, trace: Trace) -> Parts:
    return Parts(right_answer(task, trace), evidence=answer_evidence(task, trace))


ENVIRONMENT = Environment(
    name="lookup",
    about="follow a chain of 1 to 3 files among decoys to a number",
    generate=lambda count, seed, split: generate(count, seed, split, lookup_grader().ref),  # type: ignore[arg-type]
    tools=FILE_TOOLS,
    grader=lookup_grader,
    budget=Budget(turns=5, tokens_per_turn=12, context=256),
    gold=lambda task: gold,
    cheats={
        "guess": lambda task: lambda messages, seed: str(random.Random(seed).randrange(10, 100)),
        "name_every_number": lambda task: lambda messages, seed: " ".join(map(str, range(10, 14))),
        "only_list": lambda task: lambda messages, seed: call("list") if len(messages) < 3 else messages[-1].content,
        "read_the_answer": lambda task: lambda messages, seed: call("read", "answer") if len(messages) < 3 else "42",
        "leave_the_workspace": lambda task: lambda messages, seed: call("read", "/etc/passwd"),
    },
    dials={"hops": "1 to 2 in training, 3 in heldout_hops", "decoys": "2 to 5 further files"},
    splits=("train", "heldout", "heldout_keys", "heldout_hops"),
)
