"""The agent experiments run from end to end on a tiny model: their numbers mean nothing, their wiring does."""

from __future__ import annotations

import pytest

from experiments import agent_hacks, flaky_tools, harness_spread
from experiments.nano_agent import UNREACHABLE, Agent, FlakyTools
from noria.harness.tools import ToolCall
from noria.sandbox import Sandbox
from noria.types import Message, Node, ToolUse, Trace
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    folder = write_tiny_model(tmp_path_factory.mktemp("agent"))
    with Sandbox() as box:
        yield Agent(folder, box, heldout_tasks=6)


@pytest.mark.slow
def test_every_arm_of_every_experiment_runs(agent, monkeypatch):
    monkeypatch.setattr(agent_hacks, "HELDOUT", 2)
    rewards, steady, flaky, calls, _ = flaky_tools.run(agent, 0.5, 0, steps=1)
    assert len(rewards) == 1 and 0 <= steady <= 1 and 0 <= flaky <= 1 and calls >= 0
    found = {name: harness_spread.nano(agent, program, 0) for name, program in harness_spread.programs().items()}
    assert list(found) == ["files", "context", "memory", "planner", "files + bootstrap"]
    assert len(agent_hacks.run(agent, agent_hacks.hackable, 0, steps=1)) == 3


def test_the_asked_share_of_calls_fails_and_the_same_ones_for_a_seed(agent):
    calls = [ToolCall("read", {"name": "a"}, {"a": "see b"}) for _ in range(200)]
    first, again = (FlakyTools(agent.tools, 0.3, seed=3).run(calls) for _ in range(2))
    assert first == again
    failed = sum(result.text == UNREACHABLE for result in first)
    assert abs(failed / 200 - 0.3) < 0.1
    assert {result.text for result in first} == {UNREACHABLE, "see b"} and not any(r.deterministic for r in first)


def test_a_failed_call_counts_as_repeated_only_if_the_very_call_follows():
    def result(name, text):
        return Node((), Message("tool", text), use=ToolUse("read", {"name": name}))

    steps = [("a", UNREACHABLE), ("a", UNREACHABLE), ("b", "see c"), ("c", UNREACHABLE)]
    trace = Trace("t", "task", tuple(result(*step) for step in steps), 0, "files", "finished")
    assert flaky_tools.repeated([trace]) == 1 / 3


def test_the_hackable_reward_pays_for_the_form_alone(agent):
    task = agent.heldout[0]
    said = [
        Trace(f"t{i}", task.id, (Node((), Message("assistant", text)),), 0, "files", "finished")
        for i, text in enumerate((task.answer, "50", "500", "none"))
    ]
    assert [score.value for score in agent_hacks.hackable([task] * 4, said)] == [1.0, 1.0, 0.0, 0.0]
