"""Group-relative policy optimisation: groups of scored traces become per-token advantages; the loop does the rest.

The path from prompt to weight update: `improve` hands `group_batch` to `reinforce`, which draws prompts, samples a
group for each and grades it; `group_batch` compares each sample with its group (`advantages.py`) and lays it out as a
TokenBatch (`annotate.py`); `training.train` steps on it (`training/objectives.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from noria.model import Transformer
from noria.posttraining.advantages import batch_advantages, group_advantages, overlong_penalty
from noria.posttraining.annotate import annotate, gathered, lay_out, rows_of, with_reference
from noria.posttraining.lora import as_reference
from noria.posttraining.reinforce import (
    Grade,
    Monitor,
    Pool,
    Roll,
    reinforce,
    rollout_metrics,
    sampled_tokens,
    step_tasks,
)
from noria.posttraining.rl_config import GrpoConfig, RlConfig
from noria.posttraining.rollouts import Rollouts, groups_of
from noria.training import History, Progress, TokenBatch
from noria.training.objectives import KlForm
from noria.training.step import target_logprobs
from noria.types import Task, Trace

__all__ = [
    "Grade",
    "GrpoConfig",
    "Monitor",
    "Pool",
    "Roll",
    "annotate",
    "group_advantages",
    "improve",
    "rollout_metrics",
    "step_tasks",
    "with_reference",
]


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
    pool: Pool | None = None,
) -> History:
    """Train `model` in place. `roll` must sample from `model` itself (the engine shares its weights).

    Step s uses prompts and seeds that are functions of (seed, s) alone, so an interrupted run continues exactly.
    `pool`, where given, says which tasks step s draws from instead of `tasks`. `reference` is needed for a KL.
    """
    if not tasks and pool is None:
        raise ValueError("reinforcement learning needs at least one task")

    def annotated(number: int, rollouts: Rollouts) -> TokenBatch:
        return group_batch(model, rollouts, config, pad, reference)

    drawn = pool or (lambda number: tasks)
    return reinforce(model, drawn, roll, grade, annotated, config, pad, seed, progress, monitor, reference)


def group_batch(
    model: Transformer, rollouts: Rollouts, config: GrpoConfig, pad: int, reference: Transformer | None = None
) -> TokenBatch:
    """Every sampled token with its trace's advantage within its group. `model` is read only for a KL in the reward,
    where its adapters turned off are the reference."""
    rewards = shaped_rewards(rollouts, config)
    if config.reference_kl and config.kl_in == "reward":
        with as_reference(model, reference) as frozen:
            drift = trace_kl(rollouts.traces, frozen, config.kl_form, pad, config.temperature)
        rewards = [
            None if reward is None else reward - config.reference_kl * kl
            for reward, kl in zip(rewards, drift, strict=True)
        ]
    advantages = batch_advantages(groups_of(rewards, config.group), config.advantage)
    if config.overlong == "mask":
        cut_off = [trace.outcome == "truncated" for trace in rollouts.traces]
        advantages = [0.0 if is_cut else value for value, is_cut in zip(advantages, cut_off, strict=True)]
    return annotate(rollouts.traces, advantages, pad)


def shaped_rewards(rollouts: Rollouts, config: RlConfig) -> list[float | None]:
    """The graders' values, less DAPO's penalty for a reply that comes near its limit where that is asked for."""
    rewards = [score.value for score in rollouts.scores]
    if config.overlong != "penalty":
        return rewards
    most, soft = config.max_tokens, config.overlong_tokens
    assert most is not None and soft is not None
    return [
        None if reward is None else reward + overlong_penalty(sampled_tokens(trace), most, soft)
        for reward, trace in zip(rewards, rollouts.traces, strict=True)
    ]


def trace_kl(
    traces: Sequence[Trace], reference: Transformer, form: KlForm, pad: int, temperature: float = 1.0
) -> list[float]:
    """For each trace the sum over its sampled tokens of an estimate of KL(sampler || reference)."""
    return [sum(values) for values in token_kl(traces, reference, form, pad, temperature)]


def token_kl(
    traces: Sequence[Trace], reference: Transformer, form: KlForm, pad: int, temperature: float = 1.0
) -> list[list[float]]:
    """The same, a value a sampled token; the forms are those of `objectives.reference_kl`."""
    rows = rows_of(traces, [True] * len(traces))
    batch = lay_out(rows, pad)
    if batch.w_rl is None or batch.behaviour_logprob is None:
        return [[] for _ in traces]
    difference_BT = target_logprobs(reference, batch, temperature=temperature) - batch.behaviour_logprob
    if form == "k1":
        kl_BT = -difference_BT
    elif form == "k2":
        kl_BT = difference_BT.square() * 0.5
    else:
        kl_BT = difference_BT.exp() - difference_BT - 1.0
    return gathered(rows, batch, kl_BT, len(traces))
