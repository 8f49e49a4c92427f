"""Tools that remember, in whole traces: what they remember is recorded; replaying and running again both agree."""

from __future__ import annotations

import pytest

from noria.data.tokenizer import CALL
from noria.harness import Budget, ScriptedSampler, Toolbox, load_program, replay, rollout
from noria.harness.tools import WORKSPACE_TOOLS, Browser, browser_tools, memory_tools, search_tools
from noria.types import GraderRef, Message, Task, Trace

FILES = {
    "corpus/apples": "Apples ripen in autumn.\n",
    "corpus/pears": "Pears ripen before apples.\n",
    "site/form.html": "<title>F</title><form action=done.html method=post><input name=a aria-label=A><button>Go",
    "site/done.html": "<title>D</title>Done.",
}
TASK = Task("t", (Message("user", "go"),), GraderRef("g", "1"), "x", "f", "agent", hidden={"files": FILES})
BUDGET = Budget(turns=20, tokens_per_turn=128, context=4096)


def run(tokenizer, box, calls):
    replies = [*(f"{CALL}{call}" for call in calls), "done"]
    policy = lambda messages, seed: replies[sum(m.role == "assistant" for m in messages)]  # noqa: E731
    program = load_program("all_tools")
    sampler = ScriptedSampler(tokenizer, policy)
    (trace,) = rollout([TASK], [3], sampler, tokenizer, program, budget=BUDGET, tools=box)
    assert trace.outcome == "finished" and trace.facts["tool_calls"] == len(calls)
    assert replay(TASK, trace, tokenizer, program, BUDGET) == trace
    assert Trace.from_json(trace.to_json()) == trace
    return trace


def test_search_and_memory_are_in_the_trace_and_equal_when_run_again(tokenizer, tools):
    calls = [
        "search_corpus ripen apples",
        "remember fruit apples in autumn",
        "prune_chunks pears#0",
        "recall autumn",
        "append_file found.txt apples#0",
        "remember fruit apples",
        "forget nothing",
    ]
    trace = run(tokenizer, Toolbox(tools.box, (*search_tools("corpus"), *memory_tools(), *WORKSPACE_TOOLS)), calls)
    assert trace.notes == {
        "search": {"seen": ["apples#0", "pears#0"], "pruned": ["pears#0"]},
        "memory": {"fruit": "apples"},
    }
    assert trace.workspace == {"found.txt": "apples#0"} and trace.facts["failed_calls"] == 1
    assert all(node.use.deterministic for node in trace.nodes if node.use)
    again = Toolbox(tools.box, (*search_tools("corpus"), *memory_tools(), *WORKSPACE_TOOLS))
    assert run(tokenizer, again, calls) == trace


def test_a_memory_in_a_file_is_recorded_as_not_deterministic(tokenizer, tools, tmp_path):
    box = Toolbox(tools.box, memory_tools(tmp_path / "memory.sqlite"))
    first = run(tokenizer, box, ["recall k", "remember k text"])
    second = run(tokenizer, box, ["recall k", "remember k text"])
    told = [next(node.message.content for node in trace.nodes if node.use) for trace in (first, second)]
    assert told == ["nothing fits", "k: text"]
    assert not any(node.use.deterministic for trace in (first, second) for node in trace.nodes if node.use)


@pytest.mark.slow
def test_a_browser_is_in_the_trace_and_equal_when_run_again(tokenizer, tools):
    calls = ["open_page http://site.test/form.html", "fill e1 some text", "submit e2", "click e9"]
    with Browser() as one:
        trace = run(tokenizer, Toolbox(tools.box, browser_tools("site", one)), calls)
    sent = {"url": "http://site.test/done.html", "method": "POST", "fields": [["a", "some text"]]}
    assert trace.notes["browser"]["submitted"] == [sent] and trace.sandbox == "bubblewrap"
    with Browser() as other:
        assert run(tokenizer, Toolbox(tools.box, browser_tools("site", other)), calls) == trace
