"""How a training step of any stage keeps its progress and tells of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from noria.artifacts import StepContext
from noria.stages.step_costs import StepCosts
from noria.training import Event, Progress
from noria.training.sinks import open_sinks

if TYPE_CHECKING:
    from pathlib import Path

    from noria.model import Transformer

# Metrics go to the run database; those named here, e.g. "tensorboard,wandb", get them too. Execution, no identity.
SINKS_VARIABLE = "NORIA_METRICS"
SHOWN = ("reward", "loss_ce", "loss_kd", "loss_rl")  # the first of these that a step measures is on its live line


def training_progress(
    context: StepContext, unit_per_step: float = 1.0, unit: str = "steps", part: str = ""
) -> Progress:
    """Checkpoints under the step's progress folder (`part` keeps two trainings of one step apart), metrics and what the
    steps cost to the run database, a live line. Fixes the number of threads, which is part of the step's identity."""
    torch.set_num_threads(context.numerics.threads if context.numerics else 1)
    folder: Path = context.progress / part if part else context.progress
    named = [name for name in os.environ.get(SINKS_VARIABLE, "").split(",") if name]
    sinks = open_sinks(named, context.step_name or "run", context.observed)
    costs = StepCosts(context.numerics.world_size if context.numerics else 1)

    def on_step(step: int, steps: int, metrics: Mapping[str, float]) -> None:
        note = next((f"{name.removeprefix('loss_')} {metrics[name]:.3f}" for name in SHOWN if name in metrics), "")
        context.report((step + 1) * unit_per_step, steps * unit_per_step, unit, note)
        told = {**metrics, **costs.of_step(metrics)}
        context.log(step, **told)
        for sink in sinks:
            sink(step, told)

    def on_event(event: Event) -> None:
        context.event(event.kind, event.message, step=event.step, cause=event.cause, **event.evidence)

    return Progress(folder, on_step=on_step, on_event=on_event)


def checkpoint_seconds(model: Transformer) -> float:
    """Between two checkpoints: weights and two moments in fp32, written and hashed at some 300 MB/s, shall cost a tenth
    of the time."""
    return max(0.2, 12.0 * sum(parameter.numel() for parameter in model.parameters()) / 30e6)
