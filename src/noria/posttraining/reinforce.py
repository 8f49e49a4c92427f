"""The reinforcement learning loop, whichever the algorithm: draw tasks, sample, grade, annotate, hand to the one loop.

A rollout step is `config.updates` optimiser steps on what it sampled. All that is random is a function of (seed,
rollout step), so an interrupted run continues exactly; with a lag, rollout step s trains on what the policy of rollout
step s - lag sampled. On two cores sampling ahead does not overlap with training in time; its meaning is the same.

P prompts, G samples a prompt.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch.nn.utils import parametrize

from noria.grading.monitors import entropy, zero_variance_share
from noria.model import Transformer
from noria.posttraining.advantages import has_signal
from noria.posttraining.annotate import aggregated, weightless, with_reference
from noria.posttraining.lora import as_reference
from noria.posttraining.rl_config import RlConfig
from noria.posttraining.rollouts import (
    Batches,
    Kept,
    Rollouts,
    groups_of,
    oldest_step,
    read_batches,
    read_rollouts,
    write_batches,
    write_rollouts,
)
from noria.training import Annotated, History, Progress, TokenBatch, train
from noria.training.step import target_logprobs
from noria.types import Score, Task, Trace, seed_of

Roll = Callable[[Sequence[Task], Sequence[int]], list[Trace]]
Grade = Callable[[Sequence[Task], Sequence[Trace]], list[Score]]
Monitor = Callable[[int, Sequence[Task], Sequence[Trace], Sequence[Score]], Mapping[str, float]]
# The tasks that rollout step s draws from; they may change with s, as a function of s alone.
Pool = Callable[[int], Sequence[Task]]
# What an algorithm makes of a rollout step's traces: every sampled token annotated, no batch cut yet.
Annotate = Callable[[int, Rollouts], TokenBatch]


def reinforce(
    model: Transformer,
    pool: Pool,
    roll: Roll,
    grade: Grade,
    annotate: Annotate,
    config: RlConfig,
    pad: int,
    seed: int,
    progress: Progress | None = None,
    monitor: Monitor | None = None,
    reference: Transformer | None = None,
) -> History:
    """Train `model` in place; one row of metrics an optimiser step (those of a rollout step stand in each of its rows).

    `roll` must sample from `model` itself (the engine shares its weights), as it is when called.
    """
    if config.reference_kl:
        with as_reference(model, reference):  # refused before anything is sampled
            pass
    folder = progress.folder if progress else None
    updates, lag = config.updates, config.lag
    ahead = Kept(folder / "rollouts" if folder and lag else None, write_rollouts, read_rollouts)
    shared = Kept(folder / "batches" if folder and updates > 1 else None, write_batches, read_batches)

    def sample(number: int, step: int) -> Rollouts:
        model.eval()
        # Adapters are merged once for all tokens that are sampled; without any this does nothing.
        with parametrize.cached():
            found = sample_step(pool(number), number, step, roll, grade, config, seed, monitor)
        model.train()
        return found

    def prepare(number: int, step: int) -> Batches:
        for later in range(number, min(number + lag, config.steps - 1) + 1):
            ahead.find(later, step, lambda later=later: sample(later, step))  # type: ignore[misc]
        rollouts = ahead.find(number, step, lambda: sample(number, step))
        batch = annotate(number, rollouts)
        if config.reference_kl and config.kl_in == "loss" and batch.w_rl is not None:
            with as_reference(model, reference) as frozen:
                batch = with_reference(batch, frozen, config.reference_kl, config.temperature)
        metrics = dict(rollouts.metrics)
        if lag:
            metrics["policy_lag"] = float(step - rollouts.made_at)
        return Batches(tuple(cut(model, batch, config, pad, seed_of(seed, "minibatches", number))), metrics)

    def one_step(step: int) -> Annotated:
        number, part = divmod(step, updates)
        ahead.arrive(step)
        shared.arrive(step)
        batches = shared.find(number, step, lambda: prepare(number, step))
        needed = oldest_step(folder) // updates
        ahead.drop_before(number, needed)
        shared.drop_before(number, needed)
        return Annotated(batches.parts[part], batches.metrics)

    return train(model, one_step, config.loop(), progress, config.objective())


def sample_step(
    tasks: Sequence[Task],
    number: int,
    step: int,
    roll: Roll,
    grade: Grade,
    config: RlConfig,
    seed: int,
    monitor: Monitor | None,
) -> Rollouts:
    """Sample and grade the groups of one rollout step.

    With `config.refill`, groups without variance are replaced by further prompts, in an order that is a function of
    (seed, rollout step): at most `refill` more rounds; the first `prompts` groups with a signal are kept, or as many as
    there are (DAPO's dynamic sampling, arXiv 2503.14476, with a bound). Metrics are of all that was sampled.
    """
    if not tasks:
        raise ValueError("reinforcement learning needs at least one task")
    chosen: list[Task] = []
    traces: list[Trace] = []
    scores: list[Score] = []
    kept: list[int] = []
    for drawn in prompt_rounds(tasks, config, number, seed):
        repeated = [task for task in drawn for _ in range(config.group)]
        start = len(traces)
        seeds = [seed_of(seed, number, task.id, start + index) for index, task in enumerate(repeated)]
        traces += roll(repeated, seeds)
        chosen += repeated
        scores += grade(repeated, traces[start:])
        groups = groups_of([score.value for score in scores], config.group)
        kept = [index for index, group in enumerate(groups) if not config.refill or has_signal(group)]
        if len(kept) >= config.prompts:
            break
    metrics = rollout_metrics(traces, scores, config.group)
    if config.refill:
        metrics |= {"groups_sampled": len(traces) / config.group, "groups_kept": min(len(kept), config.prompts)}
    if monitor:
        metrics |= monitor(number, chosen, traces, scores)
    places = [index * config.group + member for index in kept[: config.prompts] for member in range(config.group)]
    return Rollouts(tuple(traces[i] for i in places), tuple(scores[i] for i in places), step, metrics)


def prompt_rounds(tasks: Sequence[Task], config: RlConfig, number: int, seed: int) -> list[list[Task]]:
    """The prompts of a rollout step, then those of each refill: drawn from all other tasks, none twice."""
    first = step_tasks(tasks, config.prompts, number, seed)
    seen = {task.id for task in first}
    rest = [task for task in tasks if task.id not in seen] if config.refill else []
    random.Random(seed_of("refill", seed, number)).shuffle(rest)
    more = [rest[start : start + config.prompts] for start in range(0, len(rest), config.prompts)]
    return [first, *more[: config.refill]]


def step_tasks(tasks: Sequence[Task], count: int, step: int, seed: int) -> list[Task]:
    """The tasks of `step`: passes over a reshuffled order, a pure function of (seed, step)."""
    positions = range(step * count, (step + 1) * count)
    epochs = range(positions[0] // len(tasks), positions[-1] // len(tasks) + 1)
    orders = {epoch: _shuffled(len(tasks), seed, epoch) for epoch in epochs}
    return [tasks[orders[position // len(tasks)][position % len(tasks)]] for position in positions]


def cut(model: Transformer, batch: TokenBatch, config: RlConfig, pad: int, seed: int) -> list[TokenBatch]:
    """One batch an optimiser step: `minibatches` parts of about equally many rows, reshuffled each epoch, weighted for
    the wanted mean.

    From the second on they carry `old_logprob`, the trainer's own before the first: their ratio starts to move. In the
    first the policy is still the old one, and its ratio is exactly 1.
    """
    sequences = max(1, config.prompts * config.group // config.minibatches)
    if config.updates == 1 or batch.w_rl is None:
        one = aggregated(batch, config.aggregation, sequences, config.max_tokens)
        return [one, *[weightless(pad)] * (config.updates - 1)]
    batch = replace(batch, old_logprob=target_logprobs(model, batch, config.micro_batch_rows, config.temperature))
    parts: list[TokenBatch] = []
    for epoch in range(config.epochs):
        order = torch.randperm(len(batch.tokens_BT), generator=torch.Generator().manual_seed(seed_of(seed, epoch) >> 1))
        for rows in order.tensor_split(config.minibatches):
            part = batch.pick(rows.sort().values) if len(rows) else weightless(pad)  # sorted: shortest first
            parts.append(aggregated(part, config.aggregation, sequences, config.max_tokens))
    parts[0] = replace(parts[0], old_logprob=None)
    return parts


def rollout_metrics(traces: Sequence[Trace], scores: Sequence[Score], group: int) -> dict[str, float]:
    """What every RL step reports: reward, failures of grading, groups without signal, length, truncation, entropy."""
    graded = [item.value for item in scores if item.value is not None]
    lengths = [sampled_tokens(trace) for trace in traces]
    return {
        "reward": statistics.fmean(graded) if graded else float("nan"),
        "grading_failed": 1.0 - len(graded) / len(scores),
        "zero_variance_groups": zero_variance_share(groups_of(scores, group)),
        "reply_tokens": statistics.fmean(lengths),
        "truncated": statistics.fmean(trace.outcome != "finished" for trace in traces),
        "entropy": entropy([node.call.logprobs for trace in traces for node in trace.nodes if node.call]),
    }


def sampled_tokens(trace: Trace) -> int:
    return sum(len(node.call.token_ids) for node in trace.nodes if node.call)


def _shuffled(count: int, seed: int, epoch: int) -> list[int]:
    order = list(range(count))
    random.Random(seed_of("prompt order", seed, epoch)).shuffle(order)
    return order
