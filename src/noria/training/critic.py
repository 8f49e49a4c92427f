"""A scalar head beside the language model's: the critic of PPO, or the score of a reward model.

Put on from outside as the submodule `critic`, so that the one optimiser, the guard and the checkpoints see its weights
like any others, and taken off again before a model is saved: model files know nothing of it.

B rows, T positions, N chosen targets, D width.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from noria.model import Transformer
from noria.training.batch import TokenBatch
from noria.training.shared_prompts import chosen_states


class Critic(nn.Module):
    """One number a target, read from the state before it. With a `trunk` of its own (PPO) its gradient never touches
    the policy; without one it reads the model's own states (a reward model, which is nothing else)."""

    def __init__(self, width: int, trunk: Transformer | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)  # the first prediction is 0 everywhere: no advantage is wrong by chance
        nn.init.zeros_(self.head.bias)

    def forward(self, hidden_ND: Tensor) -> Tensor:
        """(..., D) -> (...), in fp32."""
        return self.head(hidden_ND.to(self.head.weight.dtype)).float()[..., 0]


def attach_critic(model: Transformer, *, own_trunk: bool) -> Critic:
    """Give `model` a critic; its own trunk starts as a copy of the model's (under adapters: frozen, with its own).
    Replaces one that is there."""
    detach_critic(model)
    trunk = copy.deepcopy(model) if own_trunk else None
    model.critic = Critic(model.config.width, trunk)
    return model.critic


def detach_critic(model: Transformer) -> Critic | None:
    """Take the critic off again, if there is one."""
    found = critic_of(model)
    if found is not None:
        del model.critic
    return found


def critic_of(model: Transformer) -> Critic | None:
    found = getattr(model, "critic", None)
    return found if isinstance(found, Critic) else None


def reads_own_states(model: Transformer) -> bool:
    """Whether the critic needs the model's states."""
    found = critic_of(model)
    return found is not None and found.trunk is None


def critic_values(model: Transformer, batch: TokenBatch, chosen_BT: Tensor, hidden_ND: Tensor | None) -> Tensor:
    """(N,) predictions for the chosen targets. Raises ValueError for a model without a critic."""
    critic = critic_of(model)
    if critic is None:
        raise ValueError("the batch weighs `w_value` or `w_score`, but the model has no critic: call attach_critic")
    if critic.trunk is not None:
        hidden_ND = chosen_states(critic.trunk, batch, chosen_BT)
    assert hidden_ND is not None
    return critic(hidden_ND)


@torch.no_grad()
def target_values(model: Transformer, batch: TokenBatch, chosen_BT: Tensor, rows: int = 64) -> Tensor:
    """(B, T - 1) predictions where chosen, 0 elsewhere; without a gradient."""
    found_BT = torch.zeros(chosen_BT.shape)
    for start in range(0, len(chosen_BT), rows):
        part = slice(start, start + rows)
        micro, chosen = batch.rows(start, start + rows), chosen_BT[part]
        if not bool(chosen.any()):
            continue
        hidden_ND = chosen_states(model, micro, chosen) if reads_own_states(model) else None
        found_BT[part][chosen] = critic_values(model, micro, chosen, hidden_ND)
    return found_BT
