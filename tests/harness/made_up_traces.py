"""Traces for tests that need no rollout: long ones, with sub-agents, undecodable bytes and odd numbers."""

from __future__ import annotations

import random

from noria.harness.traces import Entry
from noria.types import GraderRef, Message, ModelCall, Node, Score, Task, ToolUse, Trace, digest

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>\u2028\u202e&amp;"
GRADER = GraderRef("made-up", "1")


def task(number: int = 0, family: str = "made-up") -> Task:
    question = Message("user", f"find the value of key{number}")
    return Task(
        f"task{number}", (question,), GRADER, "42", family, "agent", hidden={"files": {"a.txt": f"see {number}"}}
    )


def long_trace(turns: int = 20, seed: int = 0, tokens: int = 200) -> Trace:
    """Every prompt repeats the last one and adds to it, but one view in the middle drops what came first."""
    draw = random.Random(seed)
    asked = task(seed)
    nodes = [Node((), asked.messages[0])]
    history = [draw.randrange(4000) for _ in range(tokens)]
    for turn in range(turns):
        prompt = tuple(history if turn != turns // 2 else history[:10] + history[-60:])
        reply = tuple(draw.randrange(4000) for _ in range(20))
        call = ModelCall(prompt, reply, tuple(-draw.random() for _ in reply), 3, "stop")
        text = f"<think>turn {turn}</think><|call|>read a.txt"
        nodes.append(Node((len(nodes) - 1,), Message("assistant", text), call, digest(" ".join(map(str, prompt)))))
        use = ToolUse("read", {"name": "a.txt"}, files={"b.txt": f"\udcff {turn}", "c.txt": None}, notes={"n": [turn]})
        nodes.append(Node((len(nodes) - 1,), Message("tool", f"see {turn} \udcff\x00"), use=use))
        history += [*reply, *(draw.randrange(4000) for _ in range(tokens // 4))]
    facts = {"turns": turns, "sampled_tokens": 20 * turns, "tool_calls": turns, "invalid_calls": 0}
    return Trace(digest(str(seed)), asked.id, tuple(nodes), seed, "made-up@1", "finished", facts, "bubblewrap")


def entry(number: int, score: float | None = 1.0, **labels: object) -> Entry:
    """A short trace with its score; None: its grading failed."""
    asked = task(number, "even" if number % 2 == 0 else "odd")
    prompt, reply = tuple(range(3, 40)), (7, 8, 9 + number % 100)
    call = ModelCall(prompt, reply, (-0.5, -0.25, -1e-9))
    use = ToolUse("search" if number % 3 == 0 else "read", {"name": "a"}, deterministic=number % 3 != 0)
    nodes = (
        Node((), asked.messages[0]),
        Node((0,), Message("assistant", "<|call|>read a"), call, "hash"),
        Node((1,), Message("tool", f"the token is needle{number}"), use=use),
        Node((2,), Message("assistant", f"it is {number}"), call),
    )
    facts = {"turns": 2, "tool_calls": 1, "invalid_calls": number % 2}
    outcome = "truncated" if number % 5 == 0 else "finished"
    trace = Trace(digest(f"entry{number}"), asked.id, nodes, number, "made-up@1", outcome, facts)
    if score is None:
        return Entry(trace, asked, Score("failed", GRADER, reason="timeout"), labels)
    components = {"outcome": float(score >= 1), "tidy": score / 2}
    return Entry(trace, asked, Score("graded", GRADER, score, components=components, evidence="said so"), labels)


def with_sub_agents() -> Entry:
    """A main agent that asks two sub-agents, and a summary of both; one text is hostile."""
    asked = task(7)
    ids = tuple(range(20))
    call = ModelCall(ids, (1, 2), (-0.1, -2.0))
    nodes = (
        Node((), asked.messages[0]),
        Node((0,), Message("assistant", "<|call|>assign_task ann count <|call|>assign_task bob sum"), call),
        Node((), Message("system", f"you are ann {HOSTILE}"), agent="ann"),
        Node((2,), Message("assistant", "three"), call, agent="ann"),
        Node((), Message("system", "you are bob"), agent="bob"),
        Node((4,), Message("assistant", "<|call|>calc 1+2"), call, agent="bob"),
        Node((5,), Message("tool", "invalid: no tool calc"), use=ToolUse("calc"), agent="bob"),
        Node((6,), Message("assistant", "six"), call, agent="bob"),
        Node((1, 3), Message("tool", "three"), use=ToolUse("assign_task", {"agent": "ann", "prompt": "count"})),
        Node((8, 7), Message("tool", "six"), use=ToolUse("assign_task", {"agent": "bob", "prompt": "sum"})),
        Node((8, 9), Message("system", "summary: three and six")),
        Node((0, 10), Message("assistant", "<think>so it is</think>nine"), call),
    )
    facts = {"turns": 5, "tool_calls": 2, "invalid_calls": 1}
    trace = Trace("sub-agents", asked.id, nodes, 1, "made-up@1", "finished", facts)
    return Entry(trace, asked, Score("graded", GRADER, 0.5, components={"outcome": 1.0, "turns": -0.5}), {"step": 2})
