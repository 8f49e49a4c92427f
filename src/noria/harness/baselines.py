"""Policies that every environment is tried with: one that says nothing, one at random, one that slips.

They are for `ScriptedPolicy`: functions of what is seen and the turn's seed, so equal seeds give equal traces.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from noria.data.tokenizer import CALL, Tokenizer, train_tokenizer
from noria.harness.environments.environment import Environment
from noria.harness.scripted import Policy
from noria.harness.subagents import DESCRIPTIONS
from noria.harness.well_formed import WrongTask, wrong_in_tasks
from noria.types import Message, Task, seed_of

SHORTEST_WORDS, LONGEST_WORDS = 1, 3  # words of a random argument or answer
VOCABULARY = 4096


def silent(messages: Sequence[Message], seed: int) -> str:
    """The null agent: an empty answer at once."""
    return ""


def at_random(environment: Environment) -> Policy:
    """Half calls, half answers, of words that it has seen or made up."""
    helping = DESCRIPTIONS.values() if environment.subagents else ()
    tools = {tool.name: len(tool.parameters) for tool in (*environment.tools, *helping)}

    def policy(messages: Sequence[Message], seed: int) -> str:
        generator = random.Random(seed)
        words = sorted({word for message in messages for word in message.content.split()}) or ["0"]
        said = " ".join(generator.choices([*words, str(generator.randrange(1000))], k=_length(generator)))
        if not tools or generator.random() < 0.5:
            return said.removeprefix(CALL)
        tool = generator.choice(sorted(tools))
        return f"{CALL}{tool} {said}" if tools[tool] else f"{CALL}{tool}"

    return policy


def slipping(environment: Environment, task: Task, noise: float) -> Policy:
    """`gold`, but at each turn with probability `noise` the random agent acts instead: it gives up, or strays."""
    right, stray = environment.gold(task), at_random(environment)

    def policy(messages: Sequence[Message], seed: int) -> str:
        slips = random.Random(seed_of(seed, "slip")).random() < noise
        return (stray if slips else right)(messages, seed)

    return policy


def tokenizer_of(environment: Environment, tasks: Sequence[Task]) -> Tokenizer:
    """A tokenizer of the environment's own words, for runs that no model takes part in. Raises WrongTask."""
    if wrong := wrong_in_tasks(tasks):
        raise WrongTask(wrong)
    texts = [message.content for task in tasks for message in task.messages]
    texts += [str(text) for task in tasks for text in task.hidden.get("files", {}).values()]
    texts += [*(tool.name for tool in environment.tools), *(task.answer for task in tasks)]
    texts += [*DESCRIPTIONS] * 2
    return train_tokenizer(["invalid error no such file tool", *texts], VOCABULARY)


def _length(generator: random.Random) -> int:
    return generator.randint(SHORTEST_WORDS, LONGEST_WORDS)
