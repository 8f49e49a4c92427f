"""The programs that come with noria, and the bootstrap: what each shows, and that its traces replay."""

from __future__ import annotations

import pytest

from noria.harness import Budget, ScriptedPolicy, bootstrapped, load_program, replay, rollout
from noria.harness.bootstrap import FILE_BYTES, SNAPSHOT_BYTES, snapshot
from noria.harness.program import PROGRAMS
from noria.harness.programs import context
from noria.harness.tools import FILE_TOOLS, HostTool, Parameter, Toolbox, ToolResult
from noria.posttraining import annotate, trace_examples
from noria.types import GraderRef, Message, Task, Trace

BUDGET = Budget(turns=12, tokens_per_turn=64, context=4000)
FILES = {"apple": "see pear", "pear": "value 42"}


def task(*before: Message, **files: str) -> Task:
    messages = (*before, Message("user", "find apple"))
    return Task("t", messages, GraderRef("g", "1"), "42", "f", "agent", hidden={"files": files or FILES})


def gold(messages, seed):
    last = messages[-1].content.split()
    return last[1] if last[0] == "value" else f"<|call|>read {last[-1]}"


def run(script, tokenizer, tools, program, subject=None, budget=BUDGET):
    """The trace, and every view that the model saw."""
    views, subject = [], subject or task()

    def seeing(messages, seed):
        views.append(tuple(messages))
        return script(messages, seed)

    program = load_program(program) if isinstance(program, str) else program
    trace = rollout(
        [subject], [2], ScriptedPolicy(lambda one: seeing, tokenizer), None, program, budget=budget, tools=tools
    )[0]
    kept = Trace.from_json(trace.to_json())
    given = tuple(tools.described.values())
    assert replay(subject, kept, tokenizer, program, budget, tools=given) == trace
    return trace, views


def texts(view):
    return [message.content for message in view]


@pytest.mark.parametrize("name", sorted(path.stem for path in PROGRAMS.glob("*.py") if path.stem != "__init__"))
def test_every_program_loads_under_the_rules_for_programs(name):
    assert load_program(name).label.startswith(name)


@pytest.mark.parametrize("name", ["files", "all_tools", "memory", "context"])
def test_a_chase_is_solved_under_each_loop(tokenizer, tools, name):
    trace, _ = run(gold, tokenizer, tools, name)
    assert trace.outcome == "finished" and trace.answer == "42" and trace.facts["tool_calls"] == 2


def test_the_plan_stays_and_each_prompt_extends_the_last(tokenizer, tools):
    def script(messages, seed):
        if messages[-1].content.endswith("Call no tool yet."):
            return "1. read apple 2. follow it"
        return "<|call|>read apple" if messages[-1].content.startswith("Carry out") else gold(messages, seed)

    trace, views = run(script, tokenizer, tools, "planner")
    assert trace.answer == "42" and texts(views[-1])[1] == "1. read apple 2. follow it"
    assert len(trace_examples(trace)) == 1
    _, views = run(script, tokenizer, tools, "planner", task(Message("system", "be brief")))
    assert [message.role for message in views[0]] == ["system", "user"]


def test_a_planner_that_calls_at_once_is_told_and_goes_on(tokenizer, tools):
    def script(messages, seed):
        return "<|call|>read apple" if messages[-1].content.startswith(("invalid", "find")) else gold(messages, seed)

    trace, _ = run(script, tokenizer, tools, "planner")
    assert trace.facts["invalid_calls"] == 1 and trace.answer == "42"


def note(call):
    kept = {**call.notes.get("memory", {}), call.arguments["key"]: call.arguments["value"]}
    return ToolResult("noted", call.files, {**call.notes, "memory": kept})


REMEMBER = HostTool("remember", "remember KEY VALUE", (Parameter("key"), Parameter("value")), note)


def test_memory_shows_what_is_remembered_and_only_the_last_turns(tokenizer, tools):
    box = Toolbox(tools.box, (*FILE_TOOLS, REMEMBER))

    def script(messages, seed):
        if "start: pear" not in messages[0].content:
            return "<|call|>remember start pear"
        return "42" if "earlier messages are not shown" in messages[0].content else "<|call|>list"

    trace, views = run(script, tokenizer, box, "memory")
    assert trace.outcome == "finished" and "You remember nothing yet." in views[0][0].content
    last = views[-1]
    assert sum(message.role == "assistant" for message in last) == 8
    assert "<|call|>remember start pear" not in texts(last) and "start: pear" in last[0].content


def search(call):
    """Shows two chunks in the form of the search tools; `prune` drops them."""
    kept = {"seen": ["a#0", "b#1"], "pruned": []}
    text = "[a#0] first chunk\nof two lines\n[b#1] second\ncontext: 9 of 99 tokens in 2 chunks"
    return ToolResult(text, call.files, {**call.notes, "search": kept})


def prune(call):
    return ToolResult("pruned", call.files, {**call.notes, "search": {"seen": ["a#0", "b#1"], "pruned": ["a#0"]}})


SEARCH, PRUNE = HostTool("search", "search", (), search), HostTool("prune", "prune", (), prune)


def test_pruned_chunks_leave_the_view_and_stay_in_the_trace(tokenizer, tools):
    box = Toolbox(tools.box, (SEARCH, PRUNE))
    replies = ["<|call|>search", "<|call|>prune", "42"]
    trace, views = run(
        lambda messages, seed: replies[sum(m.role == "assistant" for m in messages)], tokenizer, box, "context"
    )
    assert "first chunk" in texts(views[1])[2]
    assert texts(views[2])[2] == "[a#0] (pruned)\n[b#1] second\ncontext: 9 of 99 tokens in 2 chunks"
    assert any("first chunk" in node.message.content for node in trace.nodes if node.use)


def test_old_long_results_are_dropped_from_the_view(tokenizer, tools):
    long = "word " * 60

    def script(messages, seed):
        return "42" if sum(message.role == "assistant" for message in messages) == 6 else "<|call|>read apple"

    _, views = run(script, tokenizer, tools, "context", task(apple=long))
    results = [message.content for message in views[-1] if message.role == "tool"]
    assert [text.startswith("(300 characters") for text in results] == [True] * 2 + [False] * 4


def test_a_summary_stands_for_what_it_summarises_and_is_trained_once(tokenizer, tools):
    """A stream through a window: the trace is longer than the context."""
    budget = Budget(turns=100, tokens_per_turn=16, context=1200)
    done = []

    def script(messages, seed):
        if messages[-1].content == context.SUMMARISE:
            done.append(len(messages))
            return "so far nothing"
        return "42" if len(done) == 3 else "<|call|>read apple"

    trace, views = run(script, tokenizer, tools, "context", task(apple="house wall fire star " * 8), budget)
    assert trace.outcome == "finished" and trace.answer == "42"
    summaries = [node for node in trace.nodes if node.call and node.message.content == "so far nothing"]
    assert len(summaries) == 3 and all(len(node.parents) > 2 for node in summaries)
    assert texts(views[-1])[:3] == ["find apple", "so far nothing", context.GO_ON]
    prompts = sum(len(node.call.token_ids) for node in trace.nodes if node.call)
    batch = annotate([trace], [1.0], tokenizer.pad)
    assert int((batch.w_rl != 0).sum()) == prompts
    assert max(len(node.call.prompt_ids) for node in trace.nodes if node.call) < 1200


def test_the_bootstrap_shows_the_workspace_in_the_first_prompt_of_any_program(tokenizer, tools):
    for name in ("files", "memory", "planner"):
        program = bootstrapped(load_program(name))
        trace, views = run(lambda messages, seed: "42", tokenizer, tools, program)
        assert "apple (8 bytes)" in views[0][0].content and "--- pear\nvalue 42" in views[0][0].content
        assert trace.harness.startswith(f"{name}+bootstrap@")
        plain, _ = run(lambda messages, seed: "42", tokenizer, tools, name)
        assert plain.id != trace.id and "apple (8" not in plain.nodes[0].message.content


def test_the_bootstrap_saves_the_turns_of_looking_around(tokenizer, tools):
    """The same policy, on and off: it reads what it has not been shown."""

    def script(messages, seed):
        shown = "\n".join(message.content for message in messages)
        return "42" if "value 42" in shown else f"<|call|>read {'pear' if 'see pear' in shown else 'apple'}"

    off, _ = run(script, tokenizer, tools, "files")
    on, _ = run(script, tokenizer, tools, bootstrapped(load_program("files")))
    assert (off.facts["turns"], on.facts["turns"]) == (3, 1)


def test_the_bootstrap_joins_a_system_message_that_is_there(tokenizer, tools):
    program = bootstrapped(load_program("files"))
    _, views = run(lambda messages, seed: "42", tokenizer, tools, program, task(Message("system", "be brief")))
    assert [message.role for message in views[0]] == ["system", "user"]
    assert views[0][0].content.startswith("be brief\n\n2 files")


def test_a_snapshot_is_bounded_and_leaves_out_what_is_no_text():
    many = {f"f{number:04}": "x" for number in range(5000)}
    big = {"big": "y" * (FILE_BYTES + 1), "raw": "\udcff\udcfe", "small": "z"}
    assert len(snapshot(many).encode()) <= SNAPSHOT_BYTES + 60 and "and 4" in snapshot(many)
    assert snapshot(big).splitlines()[1:] == ["big (513 bytes)", "raw (2 bytes)", "small (1 bytes)", "--- small", "z"]
    assert snapshot({}) == "The workspace is empty."
