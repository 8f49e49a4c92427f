"""Training: one loop, its batches, losses, optimiser, schedules and checkpoints."""

from noria.training.batch import TokenBatch
from noria.training.loop import Annotated, History, LoopConfig, Progress, mean_loss, train
from noria.training.objectives import PolicyLoss

__all__ = [
    "Annotated",
    "History",
    "LoopConfig",
    "PolicyLoss",
    "Progress",
    "TokenBatch",
    "mean_loss",
    "train",
]
