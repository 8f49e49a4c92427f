"""`stream`: a stream of about 400 tokens goes by a window of 128; what is to be known at its end must be carried along.

The prompt says `last apple pear`; each call `next NOTE` gives the next piece of a stream of words and numbers. The
program shows only the task, the last call and its result: NOTE is all that is left of what went before. At the end the
answer is the last number that each word had. Small enough for a model of a million parameters to learn to summarise.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence

from noria.harness.environments.environment import Environment, belongs, call, distinct
from noria.harness.environments.lookup import WORDS
from noria.harness.program import program_from_source
from noria.harness.reward import Parts, called_tools
from noria.harness.rollout import Budget
from noria.harness.scripted import Policy
from noria.harness.tools import HostTool, Parameter, ToolCall, ToolResult
from noria.harness.trace_grader import TraceGrader, answer_evidence, right_answer, trace_grader
from noria.types import Message, Task, Trace, digest

FAMILY, DOMAIN = "agent_stream", "agent"
PIECES, PAIRS = (5, 6, 7, 8), 13  # pieces of a stream, pairs of word and number in each: 8 pieces are 400 tokens
WANTED = (1, 1, 2)
END = "end"
WINDOW_TOKENS, NOTE_TOKENS = 128, 32


def _next(call: ToolCall) -> ToolResult:
    place = int(call.notes.get("stream", 0))
    text = call.files.get(f"{place}", END)
    return ToolResult(text, call.files, {**call.notes, "stream": place + 1})


NEXT = HostTool(
    "next", "next NOTE: the next piece of the stream", (Parameter("note", "kept in sight", required=False),), _next
)

PROGRAM = program_from_source(
    '''"""Only the task, the last call (with its note) and that call's result are shown."""

from noria.types import Message


class Harness:
    def view(self, state):
        return (state.messages[0], *state.messages[1:][-2:])

    def tools(self, state):
        return ("next",)

    def observe(self, state, action, result):
        return (Message("tool", result),)
''',
    "window",
)


def generate(count: int, seed: int, split: str) -> list[Task]:
    ref = grader().ref

    def draw(generator: random.Random, split: str) -> Task | None:
        pieces, wanted = generator.choice(PIECES), generator.sample(WORDS, generator.choice(WANTED))
        stream, last = _stream(generator, pieces, wanted)
        if not belongs(split, FAMILY, *wanted, *(last[word] for word in wanted)):
            return None
        return Task(
            id=digest(FAMILY, *wanted, *stream),
            messages=(Message("user", f"last {' '.join(wanted)}"),),
            grader=ref,
            answer=" ".join(last[word] for word in wanted),
            family=FAMILY,
            domain=DOMAIN,
            difficulty=(pieces - min(PIECES)) / 6 + (len(wanted) - 1) / 2,
            hidden={"files": {str(place): piece for place, piece in enumerate(stream)}},
        )

    return distinct(draw, FAMILY, count, seed, split)


def _stream(generator: random.Random, pieces: int, wanted: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The pieces, and the last number of each wanted word. It is neither in the first nor in the last piece, and each
    word had another number before: to stop early, to see only the end, or to keep the first number, is wrong."""
    others = [word for word in WORDS if word not in wanted]
    stream = [[(generator.choice(others), generator.randrange(10, 100)) for _ in range(PAIRS)] for _ in range(pieces)]
    last = {}
    for word in wanted:
        final = generator.randrange(1, pieces - 1)
        earlier, value = generator.sample(range(10, 100), 2)
        stream[generator.randrange(final)].append((word, earlier))
        stream[final].append((word, value))
        last[word] = str(value)
    for piece in stream:
        generator.shuffle(piece)
    return [" ".join(f"{word} {number}" for word, number in piece) for piece in stream], last


def gold(task: Task) -> Policy:
    return _carrying(lambda known, word: True)


def _carrying(keep: Callable[[dict[str, str], str], bool]) -> Policy:
    """Carries the last number of each wanted word in the note; `keep` may say that a number is not taken up."""

    def policy(messages: Sequence[Message], seed: int) -> str:
        wanted = messages[0].content.split()[1:]
        known: dict[str, str] = {}
        for message in messages[1:]:
            words = message.content.split()[message.role == "assistant" :]  # the note stands behind the tool's name
            for word, number in zip(words[::2], words[1::2], strict=False):
                if word in wanted and (message.role == "assistant" or keep(known, word)):
                    known[word] = number
        if messages[-1].content == END:
            return " ".join(known.get(word, "?") for word in wanted)
        return call("next", *(part for word in known for part in (word, known[word])))

    return policy


def _last_piece_only(messages: Sequence[Message], seed: int) -> str:
    """Never notes anything; at the end answers with a number that it can still see, or made up."""
    if messages[-1].content != END:
        return call("next")
    return " ".join("50" for _ in messages[0].content.split()[1:])


def _first_piece_only(messages: Sequence[Message], seed: int) -> str:
    words = messages[-1].content.split()
    seen = dict(zip(words[::2], words[1::2], strict=False))
    return call("next") if len(messages) == 1 else " ".join(seen.get(w, "50") for w in messages[0].content.split()[1:])


def _copying(messages: Sequence[Message], seed: int) -> str:
    """The whole piece as the note: longer than a reply may be."""
    return call("next", messages[-1].content if len(messages) > 1 else "") if messages[-1].content != END else "50"


def grader() -> TraceGrader:
    return trace_grader(FAMILY, _judge, sys.modules[__name__])


def _judge(task: Task, trace: Trace) -> Parts:
    return Parts(
        outcome=right_answer(task, trace),
        facts={"pieces_seen": float(min(called_tools(trace).count("next"), len(task.hidden["files"])))},
        evidence=answer_evidence(task, trace),
    )


ENVIRONMENT = Environment(
    name="stream",
    about="carry the last numbers of a word or two through a stream longer than the window",
    generate=generate,
    tools=(NEXT,),
    grader=grader,
    budget=Budget(turns=max(PIECES) + 3, tokens_per_turn=NOTE_TOKENS, context=WINDOW_TOKENS),
    gold=gold,
    cheats={
        "never_note": lambda task: _last_piece_only,
        "stop_after_the_first_piece": lambda task: _first_piece_only,
        "keep_the_first_number": lambda task: _carrying(lambda known, word: word not in known),
        "copy_the_piece": lambda task: _copying,
        "answer_at_once": lambda task: lambda messages, seed: " ".join(["50"] * (len(messages[0].content.split()) - 1)),
        "answer_and_more": lambda task: lambda messages, seed: f"{task.answer} {task.answer}",
    },
    dials={"pieces": f"{min(PIECES)} to {max(PIECES)} of about 50 tokens", "words": "1 or 2 to carry"},
    program=PROGRAM,
)
