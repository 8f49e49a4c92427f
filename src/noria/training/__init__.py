"""Training: one loop, its batches, losses, optimiser, schedules, guard, checkpoints and data parallelism."""

from noria.training.batch import TokenBatch
from noria.training.guard import Event, GuardConfig, WorkerFault
from noria.training.loop import Annotated, LoopConfig, train
from noria.training.objectives import Objective, PolicyLoss
from noria.training.preferences import PreferenceLoss
from noria.training.run import History, Progress
from noria.training.step import mean_loss

__all__ = [
    "Annotated",
    "Event",
    "GuardConfig",
    "History",
    "LoopConfig",
    "Objective",
    "PolicyLoss",
    "PreferenceLoss",
    "Progress",
    "TokenBatch",
    "WorkerFault",
    "mean_loss",
    "train",
]
