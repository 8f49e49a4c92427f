"""Rollouts: policies meet tasks. Many traces advance together, one batch of model calls and one of tool calls a turn.

This file owns the batches and the trace; `conversation.py` one agent's turns, `policy.py` who replies, the program
only what is seen. Token in, token out: the ids that were sampled are never made again from text, so each prompt
extends the last one exactly where the program shows the whole history. A single-turn rollout is the same loop with the
plain program and no tools; a sub-agent is one more conversation in the same batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from noria.data.chat_tokenizer import ChatTokenizer
from noria.harness.bootstrap import opening
from noria.harness.budget import Budget, Sampling
from noria.harness.calls import parse_actions
from noria.harness.conversation import Conversation, Slot
from noria.harness.policy import ChatPolicy, Turn, policy_of
from noria.harness.program import Program
from noria.harness.subagents import SubAgents, critical_steps
from noria.harness.tools import ToolCall, Tools, WrongTools
from noria.harness.well_formed import WrongTask, wrong_in_task
from noria.inference import Sampler
from noria.types import Task, Trace, digest

__all__ = ["Budget", "Sampling", "parse_actions", "rollout", "rollouts"]


def rollout(
    tasks: Sequence[Task],
    seeds: Sequence[int],
    sampler: Sampler | ChatPolicy,
    tokenizer: ChatTokenizer | None,
    program: Program,
    *,
    budget: Budget,
    tools: Tools | None = None,
    sampling: Sampling | None = None,
    subagents: SubAgents | None = None,
) -> list[Trace]:
    """One trace a task, in order, all at once. Equal arguments give equal traces.

    `sampler` samples with `tokenizer`, this project's or an imported model's; a ChatPolicy (an endpoint, a script)
    needs none. `seeds[i]` is the seed of task i's trace; turn t samples with seed_of(seed, t). A task's workspace is
    `task.hidden["files"]` (name -> text), each trace has its own copy. Raises WrongTask, WrongTools, and what a script
    raised where every rollout failed so.
    """
    if len(tasks) != len(seeds):
        raise ValueError(f"{len(tasks)} tasks and {len(seeds)} seeds: give one seed a task")
    policy = policy_of(sampler, tokenizer)
    jobs = zip(tasks, seeds, strict=True)
    many = max(1, len(tasks))
    return list(
        rollouts(
            jobs, policy, program, budget=budget, tools=tools, sampling=sampling, subagents=subagents, concurrent=many
        )
    )


def rollouts(
    jobs: Iterable[tuple[Task, int]],
    policy: ChatPolicy,
    program: Program,
    *,
    budget: Budget,
    tools: Tools | None = None,
    sampling: Sampling | None = None,
    subagents: SubAgents | None = None,
    concurrent: int = 256,
) -> Iterator[Trace]:
    """`rollout` of any number of (task, seed), in bounded memory: traces come in the order of the jobs, as soon as they
    and all before them are finished. Where the user's own code (a script) failed in every one of them, what it raised
    first is raised in the end.

    At most `concurrent` are being made at a time, and no further ones are begun while twice as many are being made or
    wait for an earlier one.
    """
    if concurrent < 1:
        raise ValueError(f"concurrent = {concurrent}: must be at least 1")
    if tools is not None and not hasattr(tools, "described"):
        raise WrongTools(f"tools: give Toolbox(sandbox, tools), not {tools!r:.60} ({type(tools).__name__})")
    sampling = sampling or Sampling()
    waiting = iter(jobs)
    unfinished: dict[int, Conversation] = {}  # by the number of the job; in order
    finished: dict[int, Trace] = {}
    begun = given = failed = 0
    bug: Exception | None = None
    more = True
    while True:
        while more and len(unfinished) < concurrent and len(unfinished) + len(finished) < 2 * concurrent:
            job = next(waiting, None)
            more = job is not None
            if job is not None:
                unfinished[begun] = _begin(*job, policy, program, budget, tools, subagents)
                begun += 1
        if not unfinished and not finished:
            if bug and failed == begun:
                bug.add_note(f"the first of {begun} rollouts, in each of which the user's own code failed")
                raise bug
            return
        _advance(list(unfinished.values()), tools, sampling)
        for number in [number for number, conversation in unfinished.items() if conversation.outcome]:
            conversation = unfinished.pop(number)
            finished[number] = _trace(conversation)
            failed += conversation.bug is not None
            bug = bug or conversation.bug
        while given in finished:
            yield finished.pop(given)
            given += 1


def _begin(
    task: Task,
    seed: int,
    policy: ChatPolicy,
    program: Program,
    budget: Budget,
    tools: Tools | None,
    subagents: SubAgents | None,
) -> Conversation:
    if wrong := wrong_in_task(task):
        raise WrongTask(wrong)
    files = dict(task.hidden.get("files", {}))
    conversation = Conversation(task, seed, policy, program, budget, tools, [], subagents, files=files)
    for message in opening(task.messages, files) if program.bootstrap else task.messages:
        conversation.add(message)
    return conversation


def _advance(traces: Sequence[Conversation], tools: Tools | None, sampling: Sampling) -> None:
    """One model call of every conversation that needs one, then the calls of all replies."""
    talking = [conversation for main in traces for conversation in _talking(main)]
    ready = [(conversation, turn) for conversation in talking if (turn := conversation.prepare(sampling))]
    by_policy: dict[int, list[tuple[Conversation, Turn]]] = {}
    for conversation, turn in ready:
        by_policy.setdefault(id(conversation.policy), []).append((conversation, turn))
    replies = {}
    for group in by_policy.values():
        said = group[0][0].policy.reply([turn for _, turn in group])
        replies.update({id(conversation): reply for (conversation, _), reply in zip(group, said, strict=True)})
    for conversation, _ in ready:
        conversation.accept(replies[id(conversation)])
    while _run_next_calls(traces, tools):
        pass


def _talking(main: Conversation) -> list[Conversation]:
    """Who needs a reply: the main agent, or the sub-agents that it waits for."""
    if not main.waits:
        return [main]
    return [slot.helper for slot in main.slots if slot.helper is not None and not slot.helper.outcome]


def _run_next_calls(traces: Sequence[Conversation], tools: Tools | None) -> bool:
    """Begin the next call of every reply, run those that are for tools together, record what is complete. False where
    no reply had one."""
    active: list[Conversation] = []
    for main in traces:
        active += [slot.helper for slot in main.slots if slot.helper is not None]
        active.append(main)
    begun: list[tuple[Conversation, Slot]] = []
    for conversation in active:
        slot = conversation.next_call()
        if slot is not None:
            begun.append((conversation, slot))
    for_tools = [(by, slot) for by, slot in begun if slot.result is None and slot.helper is None]
    if for_tools:
        assert tools is not None
        calls = [ToolCall(slot.tool, slot.arguments, *slot.before) for _, slot in for_tools]
        for (conversation, slot), result in zip(for_tools, tools.run(calls), strict=True):
            conversation.ran(slot, result)
    for conversation in active:
        conversation.record()
    return bool(begun)


def _trace(main: Conversation) -> Trace:
    facts: dict[str, float] = {"turns": main.turn, "sampled_tokens": main.sampled_tokens, **main.counts}
    nodes = tuple(main.nodes)
    trace = Trace(
        id=digest(main.task.id, str(main.seed), main.program.version),
        task_id=main.task.id,
        nodes=nodes,
        seed=main.seed,
        harness=main.program.label,
        outcome=main.outcome,
        facts=facts,
        sandbox=main.sandbox,
    )
    if main.subagents is not None:
        facts["backstop_fired"] += sum(helper.counts["backstop_fired"] for helper in main.helpers)
        facts["assignments"] = len(main.helpers)
        facts["finished_assignments"] = sum(helper.outcome == "finished" for helper in main.helpers)
        facts["subagent_turns"] = sum(helper.turn for helper in main.helpers)
        facts["subagent_tokens"] = sum(helper.sampled_tokens for helper in main.helpers)
        facts["critical_steps"] = critical_steps(trace)
    return trace
