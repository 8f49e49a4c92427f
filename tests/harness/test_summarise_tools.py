"""Summaries: the model's own stands for what it replaces, in a trace that keeps it all; a given policy's is told."""

from __future__ import annotations

import pytest

from noria.data.tokenizer import CALL
from noria.harness import Budget, ScriptedSampler, Toolbox, program_from_source, replay, rollout
from noria.harness.editing import since_summary
from noria.harness.tools import FILE_TOOLS, SUMMARISE, summarise_with
from noria.harness.tools.toolbox import ToolCall, ToolError, bind
from noria.types import GraderRef, Message, Task

PROGRAM = """
from noria.harness.editing import since_summary
from noria.types import Message
class Harness:
    def view(self, state): return since_summary(state.messages, state.notes)
    def tools(self, state): return ('read', 'summarise')
    def observe(self, state, action, result): return (Message('tool', result),)
"""
FILES = {"apple": "see pear", "pear": "value 42"}
TASK = Task("t", (Message("user", "find apple"),), GraderRef("g", "1"), "42", "f", "agent", hidden={"files": FILES})


def test_a_summary_replaces_what_came_before_and_replays_exactly(tokenizer, tools):
    replies = [f"{CALL}read apple", f"{CALL}summarise 0 see pear", f"{CALL}read pear", "42"]
    seen = []

    def policy(messages, seed):
        seen.append([message.content for message in messages])
        return replies[len(seen) - 1]

    program = program_from_source(PROGRAM, "summary")
    budget = Budget(turns=9, tokens_per_turn=64, context=512)
    box = Toolbox(tools.box, (*FILE_TOOLS, SUMMARISE))
    (trace,) = rollout([TASK], [1], ScriptedSampler(tokenizer, policy), tokenizer, program, budget=budget, tools=box)
    assert trace.answer == "42" and trace.notes == {"summary": {"text": "see pear", "keep": 0}}
    assert seen[2] == ["find apple", "summary: see pear"]
    assert seen[3][:2] == seen[2] and seen[3][-1] == "value 42"
    assert any(node.message.content == "see pear" for node in trace.nodes)
    assert replay(TASK, trace, tokenizer, program, budget) == trace


def message(role, text):
    return Message(role, text)


def test_the_latest_messages_can_be_kept():
    history = [
        message("system", "rules"),
        message("user", "task"),
        message("assistant", "call a"),
        message("tool", "long a"),
        message("assistant", "call b"),
        message("tool", "long b"),
        message("assistant", "summarise"),
        message("tool", "summary: short"),
        message("assistant", "call c"),
    ]
    notes = {"summary": {"text": "short", "keep": 2}}
    shown = [m.content for m in since_summary(history, notes)]
    assert shown == ["rules", "task", "summary: short", "call b", "long b", "call c"]
    everything = since_summary(history, {"summary": {"text": "short", "keep": 99}})
    assert [m.content for m in everything[3:7]] == ["call a", "long a", "call b", "long b"]
    assert since_summary(history, {}) == tuple(history)
    assert since_summary(history[:5], notes) == tuple(history[:5])


@pytest.mark.parametrize("arguments", [{"keep": 0, "summary": " "}, {"keep": -1, "summary": "x"}])
def test_a_bad_summary_is_an_error_for_the_model(arguments):
    with pytest.raises(ToolError):
        SUMMARISE.run(ToolCall("summarise", bind(SUMMARISE, arguments)))


def test_a_policy_summarises_a_text_with_a_seed_that_follows_from_it():
    tool = summarise_with(lambda messages, seed: f"error: {messages[-1].content[:3]} {seed % 7}", deterministic=True)
    once, again = (tool.run(ToolCall("summarise_text", {"text": "a long text"})) for _ in range(2))
    assert once == again and once.text.startswith(" error: a l") and once.deterministic
    assert not summarise_with(lambda messages, seed: "x").run(ToolCall("s", {"text": "y"})).deterministic
    for text, reply in ((" ", "x"), ("x", " ")):
        with pytest.raises(ToolError):
            summarise_with(lambda messages, seed, reply=reply: reply).run(ToolCall("s", {"text": text}))
