"""Rollouts: exact tokens, real tools, budgets, and errors as recorded outcomes."""

from __future__ import annotations

import pytest
import torch

from noria.harness import Budget, Sampling, ScriptedSampler, load_program, program_from_source, rollout
from noria.harness.rollout import parse_actions
from noria.harness.scripted import messages_of
from noria.harness.tools import READ, SandboxFailed
from noria.inference import Engine
from noria.model import ModelConfig, Transformer
from noria.posttraining import annotate
from noria.types import GraderRef, Message, Task, seed_of

BUDGET = Budget(turns=5, tokens_per_turn=32, context=256)
CALL = "<|call|>"


def task(text="find apple", **files) -> Task:
    files = files or {"apple": "see pear", "pear": "value 42"}
    return Task(text, (Message("user", text),), GraderRef("g", "1"), "42", "f", "agent", hidden={"files": files})


def replies(*texts):
    """A policy that gives these replies turn by turn."""

    def policy(messages, seed):
        return texts[sum(message.role == "assistant" for message in messages)]

    return policy


def run(policy, tokenizer, tools, program="files", budget=BUDGET, **files):
    loaded = load_program(program) if isinstance(program, str) else program
    sampler = ScriptedSampler(tokenizer, policy)
    return rollout([task(**files)], [7], sampler, tokenizer, loaded, budget=budget, tools=tools)[0]


def said(trace, role):
    return [node.message.content for node in trace.nodes if node.message.role == role]


def test_a_chase_runs_real_tools_and_ends_in_the_answer(tokenizer, tools):
    trace = run(replies(f"{CALL}read apple", f"{CALL}read pear", "42"), tokenizer, tools)
    assert trace.outcome == "finished" and trace.answer == "42"
    assert said(trace, "tool") == ["see pear", "value 42"]
    assert trace.facts["tool_calls"] == 2 and trace.facts["turns"] == 3 and trace.facts["invalid_calls"] == 0


def test_each_prompt_extends_the_last_with_the_very_ids_that_were_sampled(tokenizer, tools):
    trace = run(replies(f"{CALL}read apple", f"<think>so pear</think>{CALL}read pear", "42"), tokenizer, tools)
    calls = [node.call for node in trace.nodes if node.call]
    for before, after, result in zip(calls, calls[1:], said(trace, "tool"), strict=False):
        told = tokenizer.render([Message("tool", result)], generation=False)[1:]
        assert after.prompt_ids == (*before.prompt_ids, *before.token_ids, *told, tokenizer.assistant)


def test_what_is_trained_is_what_was_sampled_over_all_turns_and_no_tool_token(tokenizer, tools):
    """One row whose weighted targets are the calls' own ids, in order; what the tools said is context."""
    trace = run(replies(f"{CALL}read apple", f"<think>so pear</think>{CALL}read pear", "42"), tokenizer, tools)
    batch = annotate([trace], [0.5], tokenizer.pad)
    assert batch.tokens_BT.shape[0] == 1
    weighted = batch.tokens_BT[0, 1:][batch.w_rl[0] != 0].tolist()
    assert weighted == [token for node in trace.nodes if node.call for token in node.call.token_ids]
    context = batch.tokens_BT[0, 1:][batch.w_rl[0] == 0].tolist()
    for result in said(trace, "tool"):
        told = " ".join(map(str, tokenizer.encode(result)))
        assert told in " ".join(map(str, context)) and told not in " ".join(map(str, weighted))


def test_ids_that_no_text_would_give_are_kept(tokenizer, tools):
    """A sampled word spelled byte by byte must come back byte by byte, not as the tokenizer would write it."""
    spelled = [tokenizer.call, *(token for letter in "read apple" for token in tokenizer.encode(letter))]
    assert spelled != tokenizer.encode_reply(f"{CALL}read apple")

    class Spelling(ScriptedSampler):
        def generate(self, requests):
            completions = super().generate(requests)
            first = len(requests[0].prompt_ids) < 12
            ids = (*spelled, tokenizer.end)
            return [type(completions[0])(ids, (0.0,) * len(ids), "stop", 0)] if first else completions

    sampler = Spelling(tokenizer, replies("", "42"))
    trace = rollout([task()], [1], sampler, tokenizer, load_program("files"), budget=BUDGET, tools=tools)[0]
    assert said(trace, "tool") == ["see pear"]
    second = [node.call for node in trace.nodes if node.call][1]
    assert " ".join(map(str, spelled)) in " ".join(map(str, second.prompt_ids))


def test_the_plain_program_prompts_exactly_as_the_tokenizer_renders(tokenizer):
    messages = (Message("system", "be brief"), Message("user", "say <|end|>"))
    one = Task("t", messages, GraderRef("g", "1"), "", "f", "maths")
    trace = rollout(
        [one], [0], ScriptedSampler(tokenizer, replies("ok")), tokenizer, load_program("plain"), budget=Budget()
    )[0]
    assert list(trace.nodes[-1].call.prompt_ids) == tokenizer.render(messages)
    assert messages_of(trace.nodes[-1].call.prompt_ids, tokenizer) == list(messages)


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (f"{CALL}write apple", "invalid: no tool write"),
        (f"{CALL}read", "invalid: read needs name"),
        (f"{CALL}list apple", "invalid: list takes no argument"),
        (CALL, "invalid: no tool "),
    ],
)
def test_invalid_calls_are_counted_answered_and_never_run(tokenizer, tools, reply, told):
    trace = run(replies(reply, "42"), tokenizer, tools)
    assert said(trace, "tool") == [told] and trace.outcome == "finished"
    assert trace.facts["invalid_calls"] == 1 and trace.facts["tool_calls"] == 0


def test_a_tool_that_fails_says_so_and_files_outside_can_not_be_read(tokenizer, tools):
    for name in ("missing", "/etc/passwd", "../../etc/passwd", "."):
        trace = run(replies(f"{CALL}read {name}", "42"), tokenizer, tools)
        assert said(trace, "tool")[0].startswith("error: ") and trace.facts["failed_calls"] == 1


def test_list_is_sorted(tokenizer, tools):
    trace = run(replies(f"{CALL}list", "42"), tokenizer, tools, pear="x", apple="y", fig="z")
    assert said(trace, "tool") == ["apple\nfig\npear"]


def test_a_file_can_not_pass_for_an_error(tokenizer, tools):
    trace = run(replies(f"{CALL}read apple", "42"), tokenizer, tools, apple="error: timeout")
    assert trace.facts["failed_calls"] == 0 and trace.facts["backstop_fired"] == 0


def test_a_spelled_call_is_an_answer(tokenizer):
    assert parse_actions(tokenizer.encode("<|call|>read apple"), tokenizer)[0].kind == "answer"
    (action,) = parse_actions(tokenizer.encode_reply(f"<think>a</think>{CALL}read apple"), tokenizer)
    assert (action.kind, action.tool, action.argument) == ("call", "read", "apple")
    assert parse_actions(tokenizer.encode_reply("<think>never closed"), tokenizer)[0].kind == "answer"
    assert parse_actions([], tokenizer)[0].content == ""


def test_a_reply_may_hold_several_calls_in_order(tokenizer):
    ids = [*tokenizer.encode_reply(f"{CALL}read apple"), *tokenizer.encode_reply(f"{CALL}list")]
    assert [(a.tool, a.argument) for a in parse_actions(ids, tokenizer)] == [("read", "apple"), ("list", "")]


@pytest.mark.parametrize(
    ("budget", "outcome"),
    [
        (Budget(turns=2, tokens_per_turn=16), "tool_limit"),
        (Budget(turns=9, tokens_per_turn=2), "truncated"),
        (Budget(turns=9, tokens_per_turn=16, tokens=5), "truncated"),
        (Budget(turns=9, tokens_per_turn=16, context=24), "context_limit"),
    ],
)
def test_budgets_end_a_trace_with_their_outcome(tokenizer, tools, budget, outcome):
    trace = run(lambda messages, seed: f"{CALL}read apple", tokenizer, tools, budget=budget)
    assert trace.outcome == outcome and trace.facts["sampled_tokens"] <= budget.tokens
    assert all(len(n.call.prompt_ids) + len(n.call.token_ids) <= budget.context for n in trace.nodes if n.call)


def test_long_results_are_cut_by_bytes_at_a_whole_character(tokenizer, tools):
    budget = Budget(turns=2, tokens_per_turn=16, result_bytes=5)
    trace = run(replies(f"{CALL}read apple", "42"), tokenizer, tools, budget=budget, apple="ééééé")
    assert said(trace, "tool") == ["éé"]


PROGRAM = """
from noria.types import Message
class Harness:
    def view(self, state): {view}
    def tools(self, state): {tools}
    def observe(self, state, action, result): {observe}
"""
GOOD = {"view": "return state.messages", "tools": "return ['read']", "observe": "return [Message('tool', result)]"}


@pytest.mark.parametrize(
    "bad",
    [
        {"view": "1/0"},
        {"view": "raise SystemExit"},
        {"view": "return ['x']"},
        {"tools": "1/0"},
        {"observe": "return 5"},
        {"observe": "return ['x']"},
    ],
)
def test_what_a_program_raises_is_a_recorded_outcome(tokenizer, tools, bad):
    program = program_from_source(PROGRAM.format(**(GOOD | bad)), "bad")
    trace = run(replies(f"{CALL}read apple", "42"), tokenizer, tools, program)
    assert trace.outcome == "harness_error" and next(iter(bad)) in trace.nodes[-1].message.content


def test_a_program_may_show_less_and_the_trace_still_has_everything(tokenizer, tools):
    short = "return (state.messages[0], Message('tool', 'last: ' + state.messages[-1].content))"
    program = program_from_source(PROGRAM.format(**(GOOD | {"view": short})), "short")
    policy = iter([f"{CALL}read apple", f"{CALL}read pear", "42"])
    trace = run(lambda messages, seed: next(policy), tokenizer, tools, program)
    assert trace.outcome == "finished" and said(trace, "tool").count("see pear") == 1
    last = trace.nodes[-1]
    assert [trace.nodes[place].message.content for place in last.parents] == ["find apple", "last: value 42"]


def test_a_program_never_sees_the_answer(tokenizer, tools):
    seen = "return [Message('user', ' '.join(sorted(vars(state))))]"
    program = program_from_source(PROGRAM.format(**(GOOD | {"view": seen})), "spy")
    trace = run(replies("42"), tokenizer, tools, program)
    assert "hidden" not in said(trace, "user")[-1] and "answer" not in said(trace, "user")[-1]


def test_a_sandbox_that_fails_is_no_answer(tokenizer):
    class Broken:
        described = {READ.name: READ}

        def bind(self, tool, argument):
            return {"name": argument}

        def run(self, calls):
            return [SandboxFailed("gone") for _ in calls]

    trace = run(replies(f"{CALL}read apple", "42"), tokenizer, Broken())
    assert trace.outcome == "sandbox_error"


@pytest.fixture(scope="module")
def engine(tokenizer):
    torch.manual_seed(0)
    shape = ModelConfig(
        vocab_size=tokenizer.vocab_size, width=32, layers=2, heads=2, kv_heads=1, ffn_width=64, context=96
    )
    return Engine(Transformer(shape).eval(), tokenizer.end, max_rows=16)


def test_a_real_engine_gives_equal_traces_for_equal_seeds_whatever_the_batch(engine, tokenizer, tools):
    tasks = [task(f"find {name}") for name in ("apple", "pear", "river", "stone")] * 3
    seeds = [seed_of("run", index) for index in range(len(tasks))]
    arguments = {"budget": Budget(turns=3, tokens_per_turn=12, context=96), "tools": tools, "sampling": Sampling(1.0)}
    program = load_program("files")
    all_at_once = rollout(tasks, seeds, engine, tokenizer, program, **arguments)
    assert all_at_once == rollout(tasks, seeds, engine, tokenizer, program, **arguments)
    assert len({trace.id for trace in all_at_once}) == len(tasks)
    for trace in all_at_once:
        assert all(len(n.call.token_ids) == len(n.call.logprobs) for n in trace.nodes if n.call)


def test_one_seed_a_task(engine, tokenizer):
    with pytest.raises(ValueError, match="one seed"):
        rollout([task()], [], engine, tokenizer, load_program("plain"), budget=BUDGET)
