"""Sub-agents: side by side in one trace, ordered by call, within their budgets, and how long the critical path is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from noria.data.imported_tokenizer import ImportedTokenizer
from noria.harness import (
    Budget,
    Endpoint,
    EndpointPolicy,
    ReplayMismatch,
    ScriptedPolicy,
    SubAgents,
    critical_steps,
    load_program,
    program_from_source,
    replay,
    rollout,
)
from noria.harness.endpoint import read_reply
from noria.harness.policy import ImportedPolicy
from noria.harness.subagents import DESCRIPTIONS, stages
from noria.harness.tools import FILE_TOOLS, HostTool, Parameter, Toolbox, ToolResult
from noria.inference import Completion
from noria.posttraining import annotate
from noria.types import GraderRef, Message, Task, Trace
from tests.inference.imported_model import TAGS, write_tokenizer

BUDGET = Budget(turns=6, tokens_per_turn=80, context=2000)
FILES = {"apple": "see pear", "pear": "value 42", "fig": "value 7"}
MAKE = "<|call|>create_subagent a chase<|call|>create_subagent b look"


def task() -> Task:
    return Task("t", (Message("user", "sum"),), GraderRef("g", "1"), "49", "f", "agent", hidden={"files": FILES})


def helpers(budget: Budget = BUDGET, **more) -> SubAgents:
    return SubAgents(load_program("all_tools"), budget, **more)


def script(main, helper):
    """`main[turn]` for the main agent; a helper's reply is helper(its messages)."""

    def policy(messages, seed):
        if messages[0].role == "system":
            return helper(messages)
        return main[sum(message.role == "assistant" for message in messages)]

    return policy


def chase(messages):
    """`read` what the prompt names, follow `see`, answer the value."""
    word = messages[-1].content.split()
    return word[1] if word[0] == "value" else f"<|call|>read {word[-1]}"


def run(tokenizer, tools, main, helper=chase, budget=BUDGET, given=None, program="all_tools"):
    policy = ScriptedPolicy(lambda one: script(main, helper), tokenizer)
    given = given or helpers()
    loaded = load_program(program)
    trace = rollout([task()], [3], policy, None, loaded, budget=budget, tools=tools, subagents=given)[0]
    again = replay(task(), Trace.from_json(trace.to_json()), tokenizer, loaded, budget, subagents=given)
    assert again == trace
    return trace


def told(trace, agent=""):
    return [node.message.content for node in trace.nodes if node.use and node.agent == agent]


def test_helpers_of_one_reply_work_side_by_side_and_answer_in_the_order_of_the_calls(tokenizer, tools):
    assign = "<|call|>assign_task a find apple<|call|>assign_task b find fig"
    trace = run(tokenizer, tools, [MAKE, assign, "49"])
    assert trace.outcome == "finished" and trace.answer == "49"
    assert told(trace) == ["created a", "created b", "42", "7"]
    assert told(trace, "a") == ["see pear", "value 42"] and told(trace, "b") == ["value 7"]
    turns = [node.agent for node in trace.nodes if node.call]
    assert turns == ["", "", "a", "b", "a", "b", "a", ""]  # b ends sooner; a's answer still stands first
    assert stages(trace) == [{}, {"a": 3, "b": 2}, {}]
    assert critical_steps(trace) == 1 + (1 + 3) + 1 == trace.facts["critical_steps"]
    assert trace.facts["turns"] == 3 and trace.facts["subagent_turns"] == 5
    assert trace.facts["assignments"] == trace.facts["finished_assignments"] == 2
    assert trace.notes == {"subagents": {"a": "chase", "b": "look"}}


def test_a_result_is_a_merge_of_the_call_and_the_helper(tokenizer, tools):
    trace = run(tokenizer, tools, [MAKE, "<|call|>assign_task a find apple", "49"])
    merged = next(node for node in trace.nodes if node.use and node.use.tool == "assign_task")
    called, answered = (trace.nodes[parent] for parent in merged.parents)
    assert called.call and called.agent == "" and answered.call and answered.agent == "a"
    first = next(node for node in trace.nodes if node.agent == "a")
    assert first.message == Message("system", "chase") and trace.nodes[first.parents[0]] == called


def test_serial_work_has_a_longer_critical_path_than_parallel_work(tokenizer, tools):
    both = run(tokenizer, tools, [MAKE, "<|call|>assign_task a find apple<|call|>assign_task b find apple", "49"])
    one_by_one = run(
        tokenizer, tools, [MAKE, "<|call|>assign_task a find apple", "<|call|>assign_task a find apple", "49"]
    )
    assert critical_steps(both) == 6 and critical_steps(one_by_one) == 1 + 4 + 4 + 1
    assert [label for stage in stages(one_by_one) for label in stage] == ["a", "a#2"]


def test_a_reply_may_create_assign_and_read_in_any_order(tokenizer, tools):
    mixed = (
        "<|call|>create_subagent a chase<|call|>assign_task a find apple<|call|>read fig"
        "<|call|>create_subagent b look<|call|>assign_task b find fig"
    )
    trace = run(tokenizer, tools, [mixed, "49"])
    assert told(trace) == ["created a", "42", "value 7", "created b", "7"]
    assert critical_steps(trace) == (1 + 3) + 1


@pytest.mark.parametrize(
    ("call", "result"),
    [
        ("assign_task c find fig", "invalid: assign_task: there is no helper c"),
        ("create_subagent a again", "invalid: create_subagent: there is a a already"),
        ("create_subagent a#2 x", "invalid: create_subagent: the name must be one word"),
        ("create_subagent c x", "invalid: create_subagent: there are 2 helpers"),
        ("assign_task a", "invalid: assign_task needs prompt"),
    ],
)
def test_wrong_calls_are_invalid(tokenizer, tools, call, result):
    trace = run(tokenizer, tools, [MAKE, f"<|call|>{call}", "49"], given=helpers(agents=2))
    assert told(trace)[-1].startswith(result) and trace.facts["invalid_calls"] == 1 and trace.outcome == "finished"


def test_a_helper_that_does_not_end_is_a_failed_call_and_the_main_agent_goes_on(tokenizer, tools):
    endless = lambda messages: "<|call|>list"  # noqa: E731
    assign = "<|call|>assign_task a find apple"
    trace = run(tokenizer, tools, [MAKE, assign, "49"], endless, given=helpers(Budget(turns=2, tokens_per_turn=20)))
    assert told(trace)[-1] == "error: a ended with tool_limit" and trace.outcome == "finished"
    assert trace.facts["failed_calls"] == 1 and trace.facts["finished_assignments"] == 0


def test_assignments_are_limited(tokenizer, tools):
    assign = "<|call|>assign_task a find fig"
    trace = run(tokenizer, tools, [MAKE, assign + assign, "49"], given=helpers(assignments=1))
    assert told(trace)[2:] == ["7", "invalid: assign_task: 1 tasks were assigned, more are not allowed"]


def test_helpers_make_no_helpers_and_without_sub_agents_there_is_no_such_tool(tokenizer, tools):
    nested = lambda messages: MAKE if messages[-1].role == "user" else "done"  # noqa: E731
    trace = run(tokenizer, tools, [MAKE, "<|call|>assign_task a make more", "49"], nested)
    assert told(trace, "a") == ["invalid: no tool create_subagent"] * 2
    policy = ScriptedPolicy(lambda one: script([MAKE, "49"], chase), tokenizer)
    program = load_program("all_tools")
    alone = rollout([task()], [3], policy, None, program, budget=BUDGET, tools=tools)[0]
    assert told(alone) == ["invalid: no tool create_subagent"] * 2 and "critical_steps" not in alone.facts
    assert replay(task(), alone, tokenizer, program, BUDGET) == alone


def write(call):
    return ToolResult("written", {**call.files, call.arguments["name"]: call.arguments["text"]}, call.notes)


WRITE = HostTool("write", "write NAME TEXT", (Parameter("name"), Parameter("text")), write)


def test_workspaces_are_copies_and_changes_come_with_the_result_in_the_order_of_the_calls(tokenizer, tools):
    box = Toolbox(tools.box, (*FILE_TOOLS, WRITE))

    def helper(messages):
        calls = sum(message.role == "assistant" for message in messages)
        name = messages[0].content
        return (f"<|call|>write {name} {name}", f"<|call|>write both {name}", "<|call|>list", messages[-1].content)[
            calls
        ]

    make = "<|call|>create_subagent a one<|call|>create_subagent b two"
    assign = "<|call|>assign_task a go<|call|>assign_task b go<|call|>list"
    trace = run(tokenizer, box, [make, assign, "<|call|>list", "49"], helper)
    assert told(trace)[2:] == [
        "apple\nboth\nfig\none\npear",  # each saw its own copy
        "apple\nboth\nfig\npear\ntwo",
        "apple\nfig\npear",  # the main agent's own call did not wait
        "apple\nboth\nfig\none\npear\ntwo",
    ]
    assert trace.workspace == {"one": "one", "two": "two", "both": "two"}


def test_a_later_call_of_the_reply_has_the_last_word_on_a_file(tokenizer, tools):
    box = Toolbox(tools.box, (*FILE_TOOLS, WRITE))
    helper = lambda messages: "<|call|>write x helper" if messages[-1].role == "user" else "done"  # noqa: E731
    trace = run(tokenizer, box, [MAKE, "<|call|>assign_task a go<|call|>write x main", "<|call|>read x", "49"], helper)
    assert told(trace)[-1] == "main" and trace.workspace == {"x": "main"}


def test_each_sampled_token_is_trained_once_and_each_agent_has_its_rows(tokenizer, tools):
    assign = "<|call|>assign_task a find apple<|call|>assign_task b find fig"
    trace = run(tokenizer, tools, [MAKE, assign, "49"])
    batch = annotate([trace], [1.0], tokenizer.pad)
    assert batch.tokens_BT.shape[0] == 3  # main, a, b: whole conversations, though their turns are interleaved
    sampled = sorted(token for node in trace.nodes if node.call for token in node.call.token_ids)
    assert sorted(batch.tokens_BT[:, 1:][batch.w_rl != 0].tolist()) == sampled


def test_another_policy_may_reply_for_helpers(tokenizer, tools):
    frozen = ScriptedPolicy(lambda one: lambda messages, seed: "frozen", tokenizer)
    trace = run(tokenizer, tools, [MAKE, "<|call|>assign_task a find apple", "49"], given=helpers(policy=frozen))
    assert told(trace)[-1] == "frozen"


def imported_helpers(folder) -> SubAgents:
    """Helpers with a tokenizer and chat template of their own."""
    tokenizer = ImportedTokenizer.load(write_tokenizer(folder, TAGS))

    class Reads:
        def generate(self, requests):
            ids = [(*tokenizer.encode(self.reply(tokenizer.decode(one.prompt_ids))), tokenizer.end) for one in requests]
            return [Completion(one, (0.0,) * len(one), "stop", 0) for one in ids]

        def reply(self, prompt):
            call = json.dumps({"name": "read", "arguments": {"name": "fig"}})
            return "seven" if "value 7" in prompt else f"<tool_call>{call}</tool_call>"

    return helpers(Budget(turns=4, tokens_per_turn=400, context=8000), policy=ImportedPolicy(Reads(), tokenizer))


def test_helpers_with_another_tokenizer_than_the_main_agent_replay(tmp_path, tokenizer, tools):
    policy = ScriptedPolicy(lambda one: script([MAKE, "<|call|>assign_task a find fig", "49"], chase), tokenizer)
    given, program = imported_helpers(tmp_path), load_program("all_tools")
    trace = rollout([task()], [3], policy, None, program, budget=BUDGET, tools=tools, subagents=given)[0]
    assert told(trace)[-1] == "seven" and told(trace, "a") == ["value 7"]
    assert replay(task(), trace, tokenizer, program, BUDGET, tools=FILE_TOOLS, subagents=given) == trace
    without = replace(given, policy=None)
    with pytest.raises(ReplayMismatch, match=r"turn 2 has other tokens .* a policy of their own"):
        replay(task(), trace, tokenizer, program, BUDGET, tools=FILE_TOOLS, subagents=without)


def test_helpers_behind_an_endpoint_replay_with_their_policy_and_say_what_is_missing_without(tokenizer, tools):
    class Canned(EndpointPolicy):
        def reply(self, turns):
            usage = {"prompt_tokens": 5, "completion_tokens": 1}
            raw = {"choices": [{"message": {"content": "seven"}}], "usage": usage}
            return [read_reply(json.dumps(raw).encode(), "m") for _ in turns]

    policy = ScriptedPolicy(lambda one: script([MAKE, "<|call|>assign_task a find fig", "49"], chase), tokenizer)
    program = load_program("all_tools")
    with Canned(Endpoint("http://localhost:1/v1", "m")) as canned:
        given = helpers(policy=canned)
        trace = rollout([task()], [3], policy, None, program, budget=BUDGET, tools=tools, subagents=given)[0]
        assert told(trace)[-1] == "seven"
        assert replay(task(), trace, tokenizer, program, BUDGET, tools=FILE_TOOLS, subagents=given) == trace
        with pytest.raises(ReplayMismatch, match=r"laid out for an endpoint.* a policy of their own"):
            replay(task(), trace, tokenizer, program, BUDGET, tools=FILE_TOOLS, subagents=helpers())


def test_the_result_of_a_helper_with_results_that_may_vary_may_vary_itself(tokenizer, tools):
    clock = HostTool("clock", "clock", (), lambda call: ToolResult("noon", call.files, call.notes, False), False)
    box = Toolbox(tools.box, (*FILE_TOOLS, clock))
    helper = lambda messages: f"<|call|>{messages[-1].content}" if messages[-1].role == "user" else "done"  # noqa: E731
    trace = run(tokenizer, box, [MAKE, "<|call|>assign_task a clock<|call|>assign_task b list", "49"], helper)
    results = {
        node.use.arguments["agent"]: node.use
        for node in trace.nodes
        if node.use and not node.agent and node.use.tool == "assign_task"
    }
    assert not results["a"].deterministic and results["b"].deterministic


def test_a_program_of_a_helper_that_raises_is_a_failed_call(tokenizer, tools):
    bad = program_from_source(load_program("all_tools").source.replace("return state.messages", "1 / 0"), "bad")
    trace = run(tokenizer, tools, [MAKE, "<|call|>assign_task a x", "49"], given=SubAgents(bad, BUDGET))
    assert told(trace)[-1] == "error: a ended with harness_error" and trace.outcome == "finished"


def test_an_imported_model_is_told_of_the_tools_for_sub_agents(tmp_path, tools):
    tokenizer = ImportedTokenizer.load(write_tokenizer(tmp_path, TAGS))

    def called(tool, **arguments):
        return f"<tool_call>{json.dumps({'name': tool, 'arguments': arguments})}</tool_call>"

    replies = [
        called("create_subagent", name="a", system_prompt="s") + called("assign_task", agent="a", prompt="p"),
        "forty",
        "42",
    ]

    class Replies:
        def generate(self, requests):
            ids = [(*tokenizer.encode(replies.pop(0)), tokenizer.end) for _ in requests]
            return [Completion(one, (0.0,) * len(one), "stop", 0) for one in ids]

    program, given = load_program("orchestrator"), helpers()
    budget = Budget(turns=4, tokens_per_turn=400, context=8000)
    trace = rollout([task()], [1], Replies(), tokenizer, program, budget=budget, tools=tools, subagents=given)[0]
    assert told(trace) == ["created a", "forty"] and trace.answer == "42"
    shown = tokenizer.decode(next(node.call for node in trace.nodes if node.call).prompt_ids)
    assert all(f'"{name}"' in shown for name in DESCRIPTIONS)
    assert replay(task(), trace, tokenizer, program, budget, tools=FILE_TOOLS, subagents=given) == trace
