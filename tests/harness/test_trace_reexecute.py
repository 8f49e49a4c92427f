"""Traces executed again with real tools: deterministic results are equal, others are told apart, changes are found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from noria.harness import Budget, ReplayMismatch, ScriptedSampler, Toolbox, load_program, rollout
from noria.harness.baselines import tokenizer_of
from noria.harness.environment_file import load_environment
from noria.harness.environments import lookup
from noria.harness.policy import ScriptedPolicy
from noria.harness.tools import FILE_TOOLS, HostTool, ToolResult
from noria.harness.traces import Entry, Library, TraceWriter, reexecute, replay

BUDGET = Budget(turns=5, tokens_per_turn=12, context=256)
PROGRAM = load_program("files")


@pytest.fixture(scope="module")
def kept(tokenizer, tools, tmp_path_factory):
    """Rollouts that went through the store, some with an invalid or a failing call."""
    folder = tmp_path_factory.mktemp("kept")
    tasks = lookup.ENVIRONMENT.generate(8, 3, "train")

    def policy(messages, seed):
        if messages[-1].content.startswith(("invalid", "error")):
            return "11"
        slips = {0: "<|call|>nothing", 1: "<|call|>read nothing"}
        return slips.get(seed % 4, lookup.gold(messages, seed))

    traces = rollout(
        tasks, range(8), ScriptedSampler(tokenizer, policy), tokenizer, PROGRAM, budget=BUDGET, tools=tools
    )
    with TraceWriter(folder) as writer:
        writer.append(Entry(trace, task) for task, trace in zip(tasks, traces, strict=True))
    with Library(folder, folder / "i.sqlite") as library:
        return [entry for _, entry in library.entries()]


def again(entry, tokenizer, tools):
    return reexecute(entry.task, entry.trace, tokenizer, PROGRAM, BUDGET, tools)


def test_every_result_of_deterministic_tools_is_equal(kept, tokenizer, tools):
    reruns = [rerun for entry in kept for rerun in again(entry, tokenizer, tools)]
    assert len(reruns) == sum(entry.trace.facts["tool_calls"] for entry in kept) > 8
    assert {rerun.verdict for rerun in reruns} == {"equal"}
    assert any(rerun.recorded.startswith("error: ") for rerun in reruns)


def test_what_went_through_the_store_replays(kept, tokenizer):
    for entry in kept:
        assert replay(entry.task, entry.trace, tokenizer, PROGRAM, BUDGET) == entry.trace


def other_tools(tools, deterministic):
    """The same tools, but `read` gives another text and leaves a file."""

    def run(call):
        return ToolResult("another text", {**call.files, "left": "x"}, call.notes, deterministic)

    described = tools.described["read"]
    read = HostTool(described.name, described.description, described.parameters, run, deterministic)
    return Toolbox(tools.box, [read, *(tool for tool in FILE_TOOLS if tool.name != "read")])


def test_another_result_is_found_with_the_files_that_differ_and_the_rest_goes_on(kept, tokenizer, tools):
    entry = max(kept, key=lambda one: one.trace.facts["tool_calls"])
    reruns = again(entry, tokenizer, other_tools(tools, True))
    assert len(reruns) == entry.trace.facts["tool_calls"] > 1
    for rerun in reruns:
        assert rerun.recorded == entry.trace.nodes[rerun.node].message.content
        assert (rerun.verdict, rerun.now, rerun.files) == ("differs", "another text", ("left",))


def test_a_result_recorded_as_not_deterministic_may_vary(kept, tokenizer, tools):
    entry = max(kept, key=lambda one: one.trace.facts["tool_calls"])
    nodes = tuple(
        replace(node, use=replace(node.use, deterministic=False)) if node.use else node for node in entry.trace.nodes
    )
    reruns = again(replace(entry, trace=replace(entry.trace, nodes=nodes)), tokenizer, other_tools(tools, False))
    assert {rerun.verdict for rerun in reruns} == {"varied"}


def test_a_tool_that_is_not_given_any_more_leaves_the_tape(kept, tokenizer, tools):
    entry = max(kept, key=lambda one: one.trace.facts["tool_calls"])
    fewer = Toolbox(tools.box, [tool for tool in FILE_TOOLS if tool.name != "read"])
    with pytest.raises(ReplayMismatch, match="turn 1"):
        again(entry, tokenizer, fewer)


@pytest.mark.slow
def test_sub_agents_and_several_calls_a_reply_replay_and_execute_again(tools, tmp_path):
    environment = load_environment("parallel")
    tasks = environment.generate(6, 1, "train")
    spelled = tokenizer_of(environment, tasks)
    helpers = replace(environment.subagents, policy=ScriptedPolicy(environment.helper, spelled))
    box = Toolbox(tools.box, environment.tools)
    budget, program = environment.budget, environment.harness
    policy = ScriptedPolicy(environment.gold, spelled)
    traces = rollout(tasks, range(6), policy, None, program, budget=budget, tools=box, subagents=helpers)
    assert any(node.agent for trace in traces for node in trace.nodes)
    assert any("<|call|>" in node.message.content[8:] for trace in traces for node in trace.nodes if node.call)
    with TraceWriter(tmp_path) as writer:
        writer.append(Entry(trace, task) for task, trace in zip(tasks, traces, strict=True))
    with Library(tmp_path, tmp_path / "i.sqlite") as library:
        kept = [entry for _, entry in library.entries()]
    for entry, trace in zip(kept, traces, strict=True):
        assert replay(entry.task, entry.trace, spelled, program, budget, subagents=environment.subagents) == trace
        reruns = reexecute(entry.task, entry.trace, spelled, program, budget, box, subagents=environment.subagents)
        assert reruns and {rerun.verdict for rerun in reruns} == {"equal"}
