"""Traces on disk: the same back, graded again, replayed; a changed program or budget is found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from noria.harness import (
    Budget,
    Recorded,
    ReplayMismatch,
    ScriptedSampler,
    TraceFileError,
    load,
    load_program,
    program_from_source,
    regrade,
    replay,
    rollout,
    save,
)
from noria.harness.environments import lookup
from noria.harness.environments.lookup import lookup_grader
from noria.types import seed_of

BUDGET = Budget(turns=5, tokens_per_turn=12, context=256)


@pytest.fixture(scope="module")
def recorded(tokenizer, tools):
    grader = lookup_grader()
    tasks = lookup.generate(30, 9, "train", grader.ref)

    def policy(messages, seed):  # now and then an invalid call, a failing one, an unfinished chain
        if messages[-1].content.startswith(("invalid", "error")):
            return "11"
        slips = {0: "<|call|>nothing", 1: "<|call|>read nothing", 2: lookup.hasty(0.5)(messages, seed)}
        return slips.get(seed % 5, lookup.gold(messages, seed))

    seeds = [seed_of("traces", index) for index in range(30)]
    sampler = ScriptedSampler(tokenizer, policy)
    traces = rollout(tasks, seeds, sampler, tokenizer, load_program("files"), budget=BUDGET, tools=tools)
    return Recorded(tuple(tasks), tuple(traces), tuple(grader.grade(tasks, traces)))


def test_what_is_saved_comes_back_equal(recorded, tmp_path):
    save(tmp_path / "t", recorded)
    again = load(tmp_path / "t")
    assert again.traces == recorded.traces and again.tasks == recorded.tasks and again.scores == recorded.scores


def test_regrading_gives_the_same_scores(recorded, tmp_path):
    save(tmp_path, recorded)
    assert regrade(load(tmp_path), lookup_grader()).scores == recorded.scores


def test_every_trace_replays_without_model_or_sandbox(recorded, tokenizer, tmp_path):
    save(tmp_path, recorded)
    kept = load(tmp_path)
    assert {trace.facts["invalid_calls"] for trace in kept.traces} >= {0, 1}
    for task, trace in zip(kept.tasks, kept.traces, strict=True):
        assert replay(task, trace, tokenizer, load_program("files"), BUDGET) == trace


def test_a_sandbox_failure_replays_as_one(recorded, tokenizer):
    index = next(i for i, trace in enumerate(recorded.traces) if trace.facts["tool_calls"] == 2)
    trace = recorded.traces[index]
    cut = next(i for i, node in enumerate(trace.nodes) if node.message.role == "tool")
    facts = {"turns": 1, "sampled_tokens": len(trace.nodes[1].call.token_ids), "tool_calls": 1}
    failed = replace(
        trace,
        nodes=trace.nodes[:cut],
        outcome="sandbox_error",
        sandbox="",
        facts={**dict.fromkeys(trace.facts, 0), **facts},
    )
    assert replay(recorded.tasks[index], failed, tokenizer, load_program("files"), BUDGET) == failed


def test_a_program_that_shows_something_else_is_found_at_its_turn_and_named(recorded, tokenizer):
    source = load_program("files").source.replace('Message("tool", result)', "Message(\"tool\", result + '!')")
    index = next(i for i, trace in enumerate(recorded.traces) if trace.facts["turns"] > 1)
    other = program_from_source(source, "files")
    named = f"it was made with the program {load_program('files').label}, this is {other.label}"
    with pytest.raises(ReplayMismatch, match=f"turn 1 .*: {named}$"):
        replay(recorded.tasks[index], recorded.traces[index], tokenizer, other, BUDGET)


def test_a_changed_sample_or_budget_is_found(recorded, tokenizer):
    index = next(i for i, trace in enumerate(recorded.traces) if trace.facts["turns"] == 3)
    task, trace, program = recorded.tasks[index], recorded.traces[index], load_program("files")
    with pytest.raises(ReplayMismatch):
        replay(task, trace, tokenizer, program, Budget(turns=2, tokens_per_turn=12, context=256))
    with pytest.raises(ReplayMismatch, match=r"with another outcome$"):  # and nothing is said of the program
        replay(task, replace(trace, outcome="aborted"), tokenizer, program, BUDGET)


def test_a_broken_line_is_named(recorded, tmp_path):
    save(tmp_path, recorded)
    with (tmp_path / "traces.jsonl").open("a") as stream:
        stream.write('{"id": 3\n')
    with pytest.raises(TraceFileError, match=r"traces\.jsonl:31"):
        load(tmp_path)
