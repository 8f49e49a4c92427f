"""Exports of traces: ATIF by its rules, Inspect's log by what its reader needs; both by the packages where they are.

The models below state ATIF-v1.7 as `harbor.models.trajectories` (harbor 0.26) checks it: these fields and no others.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from noria.harness.traces import Entry
from noria.harness.traces.atif import to_atif
from noria.harness.traces.inspect_log import write_inspect_log
from noria.harness.traces.story import line_of, sub_agent_of, view_of
from tests.harness.made_up_traces import HOSTILE, entry, long_trace, task, with_sub_agents

CREATED = datetime(2026, 1, 2, tzinfo=UTC)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    extra: dict[str, Any] | None = None


class ToolCall(Strict):
    tool_call_id: str
    function_name: str
    arguments: dict[str, Any]


class Reference(Strict):
    trajectory_id: str
    session_id: str | None = None


class Result(Strict):
    source_call_id: str | None = None
    content: str | None = None
    subagent_trajectory_ref: list[Reference] | None = None


class Observation(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    results: list[Result]


class Metrics(Strict):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_token_ids: list[int] | None = None
    completion_token_ids: list[int] | None = None
    logprobs: list[float] | None = None


class Step(Strict):
    step_id: int
    source: Literal["system", "user", "agent"]
    message: str
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    observation: Observation | None = None
    metrics: Metrics | None = None
    llm_call_count: int | None = None


class Agent(Strict):
    name: str
    version: str
    model_name: str | None = None


class FinalMetrics(Strict):
    total_prompt_tokens: int
    total_completion_tokens: int
    total_steps: int


class Trajectory(Strict):
    schema_version: Literal["ATIF-v1.7"]
    session_id: str | None = None
    trajectory_id: str
    agent: Agent
    steps: list[Step]
    final_metrics: FinalMetrics
    subagent_trajectories: list[Trajectory] | None = None

    def check(self) -> None:
        assert [step.step_id for step in self.steps] == list(range(1, len(self.steps) + 1)) and self.steps
        known = {one.trajectory_id for one in self.subagent_trajectories or []}
        for step in self.steps:
            if step.source != "agent":
                assert step.tool_calls is step.metrics is step.reasoning_content is None
            calls = {call.tool_call_id for call in step.tool_calls or []}
            for result in step.observation.results if step.observation else []:
                assert result.source_call_id in calls
                assert {one.trajectory_id for one in result.subagent_trajectory_ref or []} <= known
        for one in self.subagent_trajectories or []:
            one.check()


def all_kinds() -> list[Entry]:
    infinite = long_trace(2)
    call = infinite.nodes[1].call
    object.__setattr__(call, "logprobs", (float("-inf"), *call.logprobs[1:]))
    bare = Entry(entry(4).trace)
    nothing = Entry(type(bare.trace)("empty", "t", (), 0, "h", "harness_error"))
    labelled = Entry(long_trace(4), task(), labels={"step": 1})
    return [with_sub_agents(), entry(0), entry(1, None), labelled, Entry(infinite, task()), bare, nothing]


@pytest.mark.parametrize("tokens", [True, False])
def test_every_trajectory_keeps_to_the_rules_of_atif(tokens):
    for one in all_kinds():
        text = json.dumps(to_atif(one, "a model", tokens), allow_nan=False, ensure_ascii=False)
        text.encode("utf-8")
        Trajectory.model_validate_json(text).check()
        assert ("prompt_token_ids" in text) == (tokens and any(node.call for node in one.trace.nodes))


def test_the_rules_refuse_what_harbor_would_refuse():
    good = to_atif(entry(0))
    with pytest.raises(ValidationError):
        Trajectory.model_validate({**good, "unknown": 1})
    with pytest.raises(AssertionError):
        Trajectory.model_validate({**good, "steps": good["steps"][1:]}).check()


def test_atif_tells_calls_results_reasoning_and_sub_agents():
    told = to_atif(with_sub_agents(), "m")
    reply = told["steps"][1]
    assert [call["arguments"]["agent"] for call in reply["tool_calls"]] == ["ann", "bob"]
    results = reply["observation"]["results"]
    assert [result["content"] for result in results] == ["three", "six"]
    subs = {one["trajectory_id"]: one for one in told["subagent_trajectories"]}
    assert [result["subagent_trajectory_ref"][0]["trajectory_id"] for result in results] == list(subs)
    bob = subs["sub-agents/bob"]["steps"]
    assert bob[1]["tool_calls"][0]["extra"] == {"invalid": True} and bob[-1]["message"] == "six"
    assert told["steps"][-1]["reasoning_content"] == "so it is" and told["steps"][-1]["message"] == "nine"
    assert told["extra"]["reward"] == 0.5 and told["extra"]["reward_components"] == {"outcome": 1.0, "turns": -0.5}
    assert told["extra"]["labels"] == {"step": 2}


def test_views_are_the_messages_that_a_call_was_shown():
    trace = with_sub_agents().trace
    assert view_of(trace, 1) == [0] and view_of(trace, 5) == [4] and view_of(trace, 7) == [4, 5, 6]
    assert [item for item in line_of(trace, "ann") if isinstance(item, int)] == [2]
    assert sub_agent_of(trace, trace.nodes[8]) == "ann" and sub_agent_of(trace, trace.nodes[6]) == ""


VIEWS = {  # a program's view and what it tells of a result
    "whole": ("state.messages", "(result,)"),
    "told nothing": ("state.messages", "()"),
    "told in two messages": ("state.messages", "('told: ' + result, 'and more')"),
    "last message": ("state.messages[-1:]", "(result,)"),
    "one that stands for all": ("(Message('user', f'turn {state.turn}'),)", "(result,)"),
    "first and last": ("(state.messages[0], state.messages[-1])", "(result,)"),
    "whole, but at turn 1": ("state.messages if state.turn != 1 else state.messages[:1]", "(result,)"),
    "whole, but another message at turn 1": (
        "state.messages if state.turn != 1 else (state.messages[0], Message('user', 'go on'))",
        "('told: ' + result,)",
    ),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_of_any_program_are_what_it_showed(tokenizer, tools, name):
    from noria.harness import Budget, ScriptedPolicy, program_from_source, replay, rollout

    view, told = VIEWS[name]
    source = (
        "from noria.types import Message\n\nclass Harness:\n"
        f"    def view(self, state):\n        return {view}\n"
        "    def tools(self, state):\n        return state.available\n"
        "    def observe(self, state, action, result):\n"
        f"        return tuple(Message('tool', text) for text in {told})\n"
    )
    program, budget = program_from_source(source, "made"), Budget(turns=4, tokens_per_turn=40, context=4000)
    shown = []

    class Seeing(ScriptedPolicy):
        def reply(self, turns):
            shown.extend([message.content for message in turn.view] for turn in turns)
            return super().reply(turns)

    one = replace(task(), hidden={"files": {"apple": "see pear"}})
    policy = Seeing(lambda _: lambda messages, seed: f"<|call|>read {'apple' if len(shown) % 2 else 'fig'}", tokenizer)
    (trace,) = rollout([one], [3], policy, None, program, budget=budget, tools=tools)
    calls = [place for place, node in enumerate(trace.nodes) if node.call]
    assert [[trace.nodes[node].message.content for node in view_of(trace, place)] for place in calls] == shown
    assert len(shown) == 4 and replay(one, trace, tokenizer, program, budget) == trace


def test_an_inspect_log_holds_each_trace_as_an_epoch_of_its_task(tmp_path):
    kinds = [*all_kinds(), entry(0, 0.0)]
    assert write_inspect_log(tmp_path / "log.eval", kinds, CREATED, "set", "m") == len(kinds)
    with zipfile.ZipFile(tmp_path / "log.eval") as log:
        names = log.namelist()
        header, summaries = json.loads(log.read("header.json")), json.loads(log.read("summaries.json"))
        samples = [json.loads(log.read(name)) for name in names if name.startswith("samples/")]
        start = json.loads(log.read("_journal/start.json"))
    assert len(set(names)) == len(names) == len(kinds) + 3 and start["version"] == header["version"] == 2
    assert header["status"] == "success" and header["results"]["total_samples"] == len(kinds) == len(summaries)
    assert [(one["id"], one["epoch"]) for one in samples] == [(one["id"], one["epoch"]) for one in summaries]
    assert len({(one["id"], one["epoch"]) for one in samples}) == len(kinds)
    values = [one.score.value for one in kinds if one.score and one.score.value is not None]
    (told,) = header["results"]["scores"]
    assert told["metrics"]["mean"]["value"] == pytest.approx(sum(values) / len(values))
    assert told["scored_samples"] == len(values) and told["unscored_samples"] == len(kinds) - len(values)
    first = samples[0]
    assert HOSTILE in first["events_data"]["messages"][2]["content"]
    models = [event for event in first["events"] if event["event"] == "model"]
    assert [event["input_refs"] for event in models] == [[[0, 1]], [[0, 1], [10, 11]], [[2, 3]], [[4, 5]], [[4, 7]]]
    assert models[0]["metadata"]["token_ids"] == [1, 2]


def test_equal_traces_give_equal_logs(tmp_path):
    for name in ("a", "b"):
        write_inspect_log(tmp_path / f"{name}.eval", all_kinds(), CREATED)
    assert (tmp_path / "a.eval").read_bytes() == (tmp_path / "b.eval").read_bytes()


def test_harbor_accepts_every_trajectory():
    models = pytest.importorskip("harbor.models.trajectories", reason="harbor is not installed")
    for one in all_kinds():
        models.Trajectory.model_validate(to_atif(one, "m"))


def test_inspect_reads_the_log(tmp_path):
    log = pytest.importorskip("inspect_ai.log", reason="inspect_ai is not installed")
    write_inspect_log(tmp_path / "log.eval", all_kinds(), CREATED)
    read = log.read_eval_log(str(tmp_path / "log.eval"))
    assert read.status == "success" and len(read.samples) == len(all_kinds())
    assert read.samples[0].scores is None or read.samples[0].scores
