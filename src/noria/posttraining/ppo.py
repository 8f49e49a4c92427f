"""Proximal policy optimisation with a critic (arXiv 1707.06347): one value a token instead of a group's mean.

The critic has a trunk of its own, a copy of the policy's, and a scalar head. It is trained by the same loop in the same
step as the policy (`w_value` beside `w_rl`), and makes the advantages by GAE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from noria.model import Transformer
from noria.posttraining.advantages import generalised_advantages
from noria.posttraining.annotate import gathered, lay_out, rows_of, spread
from noria.posttraining.grpo import shaped_rewards, token_kl
from noria.posttraining.lora import as_reference
from noria.posttraining.reinforce import Grade, Monitor, Pool, Roll, reinforce
from noria.posttraining.rl_config import PpoConfig
from noria.posttraining.rollouts import Rollouts
from noria.training import History, Progress, TokenBatch
from noria.training.critic import attach_critic, critic_of, detach_critic, target_values
from noria.types import Task


def improve_with_critic(
    model: Transformer,
    tasks: Sequence[Task],
    roll: Roll,
    grade: Grade,
    config: PpoConfig,
    pad: int,
    seed: int,
    progress: Progress | None = None,
    monitor: Monitor | None = None,
    reference: Transformer | None = None,
    pool: Pool | None = None,
) -> History:
    """Train `model` in place, as `grpo.improve` does; the critic is there only meanwhile, unless it was before."""
    if not tasks and pool is None:
        raise ValueError("reinforcement learning needs at least one task")
    brought = critic_of(model) is not None
    if not brought:
        attach_critic(model, own_trunk=True)

    def annotated(number: int, rollouts: Rollouts) -> TokenBatch:
        return critic_batch(model, rollouts, config, pad, reference, critic_only=number < config.critic_warmup)

    try:
        drawn = pool or (lambda number: tasks)
        return reinforce(model, drawn, roll, grade, annotated, config, pad, seed, progress, monitor, reference)
    finally:
        if not brought:
            detach_critic(model)


def critic_batch(
    model: Transformer,
    rollouts: Rollouts,
    config: PpoConfig,
    pad: int,
    reference: Transformer | None = None,
    critic_only: bool = False,
) -> TokenBatch:
    """Every sampled token of a graded trace with its advantage, the critic's value and the return it should predict.

    The reward stands at a trace's last sampled token; a KL in the reward at each. Failed gradings take no part.
    """
    rewards = shaped_rewards(rollouts, config)
    traces = rollouts.traces
    rows = rows_of(traces, [reward is not None for reward in rewards])
    batch = lay_out(rows, pad)
    if batch.w_rl is None:
        return batch
    value_BT = target_values(model, batch, batch.w_rl != 0, config.micro_batch_rows)
    values = gathered(rows, batch, value_BT, len(traces))
    drift = None
    if config.reference_kl and config.kl_in == "reward":
        with as_reference(model, reference) as frozen:
            drift = token_kl(traces, frozen, config.kl_form, pad, config.temperature)
    advantages, returns = [], []
    for index, (reward, own) in enumerate(zip(rewards, values, strict=True)):
        penalties = [-config.reference_kl * kl for kl in drift[index]] if drift and own else [0.0] * len(own)
        if own and reward is not None:
            penalties[-1] += reward
        advantage, expected = generalised_advantages(penalties, own, config.gamma, config.gae_lambda)
        advantages.append(advantage)
        returns.append(expected)
    if config.whiten:
        advantages = _whitened(advantages)
    return replace(
        batch,
        w_rl=torch.zeros_like(batch.w_rl) if critic_only else batch.w_rl,
        advantage=spread(rows, batch, advantages),
        w_value=batch.w_rl * config.value_weight,
        old_value=value_BT,
        value_target=spread(rows, batch, returns),
    )


def _whitened(advantages: Sequence[Sequence[float]]) -> list[list[float]]:
    flat = torch.tensor([value for row in advantages for value in row], dtype=torch.float64)
    mean, deviation = flat.mean().item(), flat.std(correction=0).item()
    return [[(value - mean) / (deviation + 1e-8) for value in row] for row in advantages]
