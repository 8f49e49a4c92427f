"""TokenBatch: packed token ids and, for each predicted token, what the algorithms say about it.

B rows, T positions. Every per-token field is indexed by the *target*: entry t speaks of tokens_BT[:, t + 1], which the
model predicts from position t; so fields have T - 1 columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenBatch:
    """Algorithms annotate, the loop trains: it reads only the weights and the fields that they switch on.

    `w_ce`, `w_rl`, `w_kl`, `w_kd`, `w_value` weigh cross-entropy, policy gradient, KL to a reference, distillation and
    a critic's error. `w_pair` and `w_score` are signed: + on a chosen reply, - on a rejected one; a row is one pair
    (`preferences.py`), of log-probabilities or of the scores of a reward model.
    `segment_BT` numbers the documents of a row (None: one document a row, padding at its end).
    """

    tokens_BT: Tensor
    w_ce: Tensor
    segment_BT: Tensor | None = None
    w_rl: Tensor | None = None
    w_kl: Tensor | None = None
    w_kd: Tensor | None = None
    behaviour_logprob: Tensor | None = None  # as sampled by the engine
    old_logprob: Tensor | None = None  # the trainer's own, at the start of the step
    reference_logprob: Tensor | None = None
    advantage: Tensor | None = None
    teacher_ids: Tensor | None = None  # (B, T - 1, K) ids drawn from the teacher
    teacher_weight: Tensor | None = None  # (B, T - 1, K) their weights, summing to 1 where w_kd > 0
    w_value: Tensor | None = None
    value_target: Tensor | None = None  # the return that the critic should predict
    old_value: Tensor | None = None  # what it predicted at the start of the rollout step
    w_pair: Tensor | None = None
    w_score: Tensor | None = None
    reference_point: Tensor | None = None  # (B, 1) of KTO

    def rows(self, start: int, stop: int) -> TokenBatch:
        """The rows start..stop of every field."""
        chosen = {name: value[start:stop] for name, value in vars(self).items() if value is not None}
        return replace(self, **chosen)

    def pick(self, rows: Tensor) -> TokenBatch:
        """The rows of these indices of every field, in their order."""
        chosen = {name: value[rows] for name, value in vars(self).items() if value is not None}
        return replace(self, **chosen)

    def every(self, start: int, stride: int) -> TokenBatch:
        """Rows start, start + stride, ... of every field: the share of one rank among `stride`."""
        chosen = {name: value[start::stride] for name, value in vars(self).items() if value is not None}
        return replace(self, **chosen)

    def weightless(self) -> TokenBatch:
        """The same rows with no weight on any target."""
        zeros = {
            name: torch.zeros_like(value)
            for name, value in vars(self).items()
            if name.startswith("w_") and value is not None
        }
        return replace(self, **zeros)

    def split(self, rows: int) -> list[TokenBatch]:
        """Micro-batches of at most `rows` rows, each trimmed; rows sorted by length make them compact."""
        return [self.rows(start, start + rows).trimmed() for start in range(0, self.tokens_BT.shape[0], rows)]

    def trimmed(self) -> TokenBatch:
        """Without the columns after the last weighted target: they change neither loss nor gradient."""
        weighted = [value for name, value in vars(self).items() if name.startswith("w_") and value is not None]
        used_T = torch.stack([(value != 0).any(0) for value in weighted]).any(0).nonzero()
        targets = int(used_T.max()) + 1 if len(used_T) else 1
        cut = {
            name: value[:, : targets + 1] if name in ("tokens_BT", "segment_BT") else value[:, :targets]
            for name, value in vars(self).items()
            if value is not None
        }
        return replace(self, **cut)
