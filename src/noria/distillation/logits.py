"""Logit distillation: a packed batch annotated with draws from the teacher, so that the loop adds its w_kd term."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from noria.model import Transformer
from noria.posttraining.sft import Example, SftConfig, pack_order, sft_loop, sft_steps
from noria.training import Annotated, History, Progress, TokenBatch, train


def distil(
    student: Transformer,
    examples: Sequence[Example],
    draws: Sequence[np.ndarray],
    config: SftConfig,
    teacher_weight: float,
    pad: int,
    seed: int,
    progress: Progress | None = None,
) -> History:
    """Train `student` on the teacher's traces: (1 - w) cross-entropy to the tokens + w cross-entropy to the teacher.

    Hinton et al. (arXiv 1503.02531) at temperature 1. With `teacher_weight` 0 this is fine-tuning on the same tokens.
    """
    if not 0.0 <= teacher_weight <= 1.0:
        raise ValueError(f"teacher_weight must lie in [0, 1]; found {teacher_weight}")
    chosen = sft_steps(examples, config, seed)

    def annotate(step: int) -> Annotated:
        batch = distillation_batch(
            [examples[index] for index in chosen[step]],
            [draws[index] for index in chosen[step]],
            student.config.context,
            teacher_weight,
            pad,
        )
        return Annotated(batch)

    return train(student, annotate, sft_loop(len(chosen), config), progress)


def distillation_batch(
    examples: Sequence[Example], draws: Sequence[np.ndarray], row_tokens: int, teacher_weight: float, pad: int
) -> TokenBatch:
    """The packed batch of `examples` with `teacher_ids` (B, T - 1, K), uniform `teacher_weight` and split weights."""
    batch, places = pack_order(examples, row_tokens, pad)
    rows, targets = batch.w_ce.shape
    count = draws[0].shape[1]
    teacher_ids = torch.zeros(rows, targets, count, dtype=torch.long)
    for example_draws, (row, start) in zip(draws, places, strict=True):
        teacher_ids[row, start : start + len(example_draws)] = torch.from_numpy(example_draws.astype(np.int64))
    return replace(
        batch,
        w_ce=batch.w_ce * (1.0 - teacher_weight),
        w_kd=batch.w_ce * teacher_weight,
        teacher_ids=teacher_ids,
        teacher_weight=torch.full(teacher_ids.shape, 1.0 / count),
    )
