"""Any number of traces in bounded memory, in order, and equal to those made all at once."""

from __future__ import annotations

import gc
import weakref

import pytest

from noria.harness import Budget, ScriptedPolicy, load_program, rollout, rollouts
from noria.harness.conversation import Conversation
from noria.types import GraderRef, Message, Task, seed_of

BUDGET = Budget(turns=6, tokens_per_turn=16, context=500)


def task(number: int) -> Task:
    files = {"apple": f"value {number}"}
    return Task(
        str(number), (Message("user", "apple"),), GraderRef("g", "1"), "", "f", "agent", hidden={"files": files}
    )


def script_of(one: Task):
    """Reads once, or five times; so traces end in another order than they began."""
    reads = 5 if int(one.id) % 7 == 0 else 1

    def script(messages, seed):
        done = sum(message.role == "assistant" for message in messages)
        return one.id if done == reads else "<|call|>read apple"

    return script


def jobs(count: int):
    return ((task(number), seed_of("s", number)) for number in range(count))


@pytest.mark.slow
def test_traces_come_in_order_and_equal_those_made_all_at_once(tokenizer, tools):
    tasks, seeds = zip(*jobs(60), strict=True)
    program = load_program("files")
    at_once = rollout(tasks, seeds, ScriptedPolicy(script_of, tokenizer), None, program, budget=BUDGET, tools=tools)
    for concurrent in (1, 7, 100):
        policy = ScriptedPolicy(script_of, tokenizer)
        made = list(rollouts(jobs(60), policy, program, budget=BUDGET, tools=tools, concurrent=concurrent))
        assert made == at_once


@pytest.mark.slow
def test_no_more_traces_live_than_were_allowed(tokenizer, tools, monkeypatch):
    alive: weakref.WeakSet[Conversation] = weakref.WeakSet()
    begun, most = [0], [0]
    original = Conversation.__post_init__

    def counting(self):
        original(self)
        alive.add(self)
        begun[0] += 1
        most[0] = max(most[0], len(alive))

    monkeypatch.setattr(Conversation, "__post_init__", counting)
    policy = ScriptedPolicy(script_of, tokenizer)
    ahead = 0
    for taken, trace in enumerate(
        rollouts(jobs(400), policy, load_program("files"), budget=BUDGET, tools=tools, concurrent=16)
    ):
        assert trace.task_id == str(taken)
        ahead = max(ahead, begun[0] - taken)
    assert begun[0] == 400 and most[0] <= 17 and ahead <= 32
    gc.collect()
    assert not alive


def test_nothing_is_begun_before_it_is_asked_for(tokenizer, tools):
    taken = []

    def watched():
        for job in jobs(1000):
            taken.append(job[0].id)
            yield job

    stream = rollouts(
        watched(), ScriptedPolicy(script_of, tokenizer), load_program("files"), budget=BUDGET, tools=tools, concurrent=8
    )
    next(stream)
    stream.close()
    assert len(taken) <= 16


def test_no_jobs_no_traces_and_no_room_is_refused(tokenizer):
    policy, program = ScriptedPolicy(script_of, tokenizer), load_program("plain")
    assert list(rollouts([], policy, program, budget=BUDGET)) == []
    with pytest.raises(ValueError, match="concurrent"):
        list(rollouts([], policy, program, budget=BUDGET, concurrent=0))


@pytest.mark.slow
def test_a_thousand_concurrent_traces_take_little_memory(tokenizer, tools):
    """Python's own allocations at their peak: of what is being made, and nothing of what is done."""
    import tracemalloc

    def peak(count: int) -> int:
        policy = ScriptedPolicy(script_of, tokenizer)
        stream = rollouts(jobs(count), policy, load_program("files"), budget=BUDGET, tools=tools, concurrent=1000)
        tracemalloc.start()
        try:
            assert sum(trace.outcome == "finished" for trace in stream) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    once, thrice = peak(1000), peak(3000)
    assert once < 64 * 2**20 and thrice < 1.5 * once
