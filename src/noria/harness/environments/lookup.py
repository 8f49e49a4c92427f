"""`agent_lookup`: follow a chain of files to a number. The smallest task that can't be solved in one turn.

The prompt says `find apple`; the file `apple` holds `see pear` or `value 42`; other files are decoys of the same form.
A chain of h hops needs h calls of `read`. Small enough for a model of a million parameters, and a guess is right one
time in ninety.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

from noria.data.tokenizer import CALL
from noria.types import GraderRef, Message, Task, digest, seed_of

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
HELDOUT_TENTHS = range(0, 3)  # of all chains, by their digest


class LookupExhausted(ValueError):
    """The split has fewer distinct tasks than were asked for."""


def generate(count: int, seed: int, split: Split, grader: GraderRef) -> list[Task]:
    """`count` distinct tasks; equal arguments give equal tasks."""
    generator = random.Random(seed_of(FAMILY, seed, split))
    tasks: dict[str, Task] = {}
    for _ in range(count * 100):
        task = _draw(generator, split, grader)
        if task is not None:
            tasks.setdefault(task.id, task)
        if len(tasks) == count:
            return list(tasks.values())
    raise LookupExhausted(f"{FAMILY} gave {len(tasks)} distinct tasks of split {split!r}, not {count}; ask for fewer")


def gold(messages: Sequence[Message], seed: int) -> str:
    """The right reply to what is seen: a policy for `ScriptedSampler`."""
    last = messages[-1].content.split()
    if last[0] == "value":
        return last[1]
    return f"{CALL}read {last[1]}"  # "find apple" and "see apple" alike


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
    heldout = int(digest(FAMILY, *chain)[:8], 16) % 10 in HELDOUT_TENTHS
    if split in ("train", "heldout") and heldout != (split == "heldout"):
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
