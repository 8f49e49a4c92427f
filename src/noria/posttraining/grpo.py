"""Group-relative policy optimisation: groups of scored traces become per-token advantages; the loop does the rest.

The path from prompt to weight update: `improve` draws prompts, `roll` samples a group for each, `grade` scores them,
`group_advantages` compares each with its group, `annotate` lays them out as a TokenBatch, `training.train` steps.

P prompts, G samples a prompt.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from noria.grading.monitors import entropy, zero_variance_share
from noria.inference import score
from noria.model import Transformer
from noria.posttraining.sft import Example, trace_examples
from noria.training import Annotated, History, LoopConfig, Progress, TokenBatch, train
from noria.training.compute import Precision
from noria.types import Score, Task, Trace, seed_of


class GrpoConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(ge=1, description="optimiser steps; each uses fresh rollouts once (exactly on-policy)")
    prompts: int = Field(default=24, ge=1, description="P, tasks a step")
    group: int = Field(default=8, ge=2, description="G, samples a task")
    temperature: float = Field(default=1.0, gt=0)
    learning_rate: float = Field(default=5e-4, gt=0, le=1)
    advantage: Literal["mean", "std"] = Field(
        default="mean", description="reward minus group mean (Dr. GRPO, arXiv 2503.20783), or also over its deviation"
    )
    reference_kl: float = Field(default=0.0, ge=0, description="weight of the KL to the model before RL")
    muon: bool = Field(default=True, description="Muon for hidden matrices; false: AdamW for all, as open models had")
    precision: Precision = Field(default="float32", description="of training's products; weights and sums stay fp32")
    micro_batch_rows: int = Field(default=64, ge=1, description="rows a pass; changes memory, not the result")


Roll = Callable[[Sequence[Task], Sequence[int]], list[Trace]]
Grade = Callable[[Sequence[Task], Sequence[Trace]], list[Score]]
Monitor = Callable[[int, Sequence[Task], Sequence[Trace], Sequence[Score]], Mapping[str, float]]


def group_advantages(rewards: Sequence[float | None], form: Literal["mean", "std"] = "mean") -> list[float]:
    """A_i = R_i - mean(R) over the graded members of one group (DeepSeekMath, arXiv 2402.03300, eq. 3 before its std).

    None (a failed grading) gets advantage 0 and does not enter the mean. Equal rewards give zeros.
    """
    graded = [reward for reward in rewards if reward is not None]
    if len(graded) < 2 or max(graded) == min(graded):
        return [0.0] * len(rewards)
    centre = statistics.fmean(graded)
    scale = statistics.pstdev(graded) if form == "std" else 1.0
    return [0.0 if reward is None else (reward - centre) / scale for reward in rewards]


def annotate(traces: Sequence[Trace], advantages: Sequence[float], pad: int) -> TokenBatch:
    """One row a chain of model calls, shortest first; sampled tokens carry the trace's advantage, all others no weight.

    Traces with advantage 0 carry no weight either: they add no gradient, but their tokens count in no average (DAPO's
    filtering of groups without signal, arXiv 2503.14476).
    """
    rows: list[tuple[Example, list[float], float]] = []
    for trace, advantage in zip(traces, advantages, strict=True):
        if advantage == 0.0:
            continue
        logprobs = [logprob for node in trace.nodes if node.call for logprob in node.call.logprobs]
        for item in trace_examples(trace):
            sampled = sum(item.trained)
            rows.append((item, logprobs[:sampled], advantage))
            logprobs = logprobs[sampled:]
    if not rows:
        return TokenBatch(torch.full((1, 2), pad), torch.zeros(1, 1))
    rows.sort(key=lambda row: len(row[0].token_ids))
    shape = (len(rows), len(rows[-1][0].token_ids))
    tokens_BT = torch.full(shape, pad, dtype=torch.long)
    w_rl, behaviour, advantage_BT = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape)
    for index, (item, sampled_logprobs, advantage) in enumerate(rows):
        length = len(item.token_ids)
        trained = torch.tensor(item.trained)
        tokens_BT[index, :length] = torch.tensor(item.token_ids)
        w_rl[index, :length] = trained.float()
        advantage_BT[index, :length] = trained * advantage
        behaviour[index, :length][trained] = torch.tensor(sampled_logprobs, dtype=torch.float32)
    return TokenBatch(
        tokens_BT,
        w_ce=torch.zeros(shape)[:, 1:],
        w_rl=w_rl[:, 1:],
        behaviour_logprob=behaviour[:, 1:],
        advantage=advantage_BT[:, 1:],
    )


def with_reference(batch: TokenBatch, reference: Transformer, weight: float = 1.0) -> TokenBatch:
    """`batch` with the reference model's log-probability of every target token and a KL weight where RL has one."""
    assert batch.w_rl is not None and batch.segment_BT is None
    logprobs = torch.tensor(score(reference, batch.tokens_BT.tolist()))
    values = {name: value for name, value in vars(batch).items() if name not in ("w_kl", "reference_logprob")}
    return TokenBatch(**values, w_kl=batch.w_rl * weight, reference_logprob=logprobs)


def improve(
    model: Transformer,
    tasks: Sequence[Task],
    roll: Roll,
    grade: Grade,
    config: GrpoConfig,
    pad: int,
    seed: int,
    progress: Progress | None = None,
    monitor: Monitor | None = None,
    reference: Transformer | None = None,
) -> History:
    """Train `model` in place. `roll` must sample from `model` itself (the engine shares its weights).

    Step s uses prompts and seeds that are functions of (seed, s) alone, so an interrupted run continues exactly.
    """

    if not tasks:
        raise ValueError("reinforcement learning needs at least one task")

    def one_step(step: int) -> Annotated:
        chosen = step_tasks(tasks, config.prompts, step, seed)
        repeated = [task for task in chosen for _ in range(config.group)]
        seeds = [seed_of(seed, step, task.id, index) for index, task in enumerate(repeated)]
        model.eval()
        traces = roll(repeated, seeds)
        model.train()
        scores = grade(repeated, traces)
        rewards = [item.value for item in scores]
        groups = [rewards[start : start + config.group] for start in range(0, len(rewards), config.group)]
        advantages = [value for group in groups for value in group_advantages(group, config.advantage)]
        batch = annotate(traces, advantages, pad)
        if config.reference_kl and reference is not None and batch.w_rl is not None:
            batch = with_reference(batch, reference, config.reference_kl)
        metrics = rollout_metrics(traces, scores, config.group)
        return Annotated(batch, metrics | dict(monitor(step, repeated, traces, scores) if monitor else {}))

    loop = LoopConfig(
        steps=config.steps,
        learning_rate=config.learning_rate,
        schedule="linear",
        warmup_steps=min(5, config.steps),
        weight_decay=0.0,
        muon=config.muon,
        precision=config.precision,
        micro_batch_rows=config.micro_batch_rows,
    )
    return train(model, one_step, loop, progress)


def step_tasks(tasks: Sequence[Task], count: int, step: int, seed: int) -> list[Task]:
    """The tasks of `step`: passes over a reshuffled order, a pure function of (seed, step)."""
    positions = range(step * count, (step + 1) * count)
    epochs = range(positions[0] // len(tasks), positions[-1] // len(tasks) + 1)
    orders = {epoch: _shuffled(len(tasks), seed, epoch) for epoch in epochs}
    return [tasks[orders[position // len(tasks)][position % len(tasks)]] for position in positions]


def _shuffled(count: int, seed: int, epoch: int) -> list[int]:
    order = list(range(count))
    random.Random(seed_of("prompt order", seed, epoch)).shuffle(order)
    return order


def rollout_metrics(traces: Sequence[Trace], scores: Sequence[Score], group: int) -> dict[str, float]:
    """What every RL step reports: reward, failures of grading, groups without signal, length, truncation, entropy."""
    graded = [item.value for item in scores if item.value is not None]
    lengths = [sum(len(node.call.token_ids) for node in trace.nodes if node.call) for trace in traces]
    groups = [scores[start : start + group] for start in range(0, len(scores), group)]
    return {
        "reward": statistics.fmean(graded) if graded else float("nan"),
        "grading_failed": 1.0 - len(graded) / len(scores),
        "zero_variance_groups": zero_variance_share(groups),
        "reply_tokens": statistics.fmean(lengths),
        "truncated": statistics.fmean(trace.outcome != "finished" for trace in traces),
        "entropy": entropy([node.call.logprobs for trace in traces for node in trace.nodes if node.call]),
    }
