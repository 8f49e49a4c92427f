"""Where a run's metrics can go besides the run database: TensorBoard, Weights & Biases, trackio. Each is an extra.

A sink is a function of (step, metrics). `open_sinks` opens those that a user names; nothing is imported before.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

Sink = Callable[[int, Mapping[str, float]], None]


class SinkError(ValueError):
    """A sink that is unknown or not installed; the message says what to install."""


def open_sinks(names: Sequence[str], run: str, folder: Path) -> list[Sink]:
    """The sinks of `names` for a run of this name; those that write files write under `folder`. Raises SinkError."""
    unknown = [name for name in names if name not in SINKS]
    if unknown:
        raise SinkError(f"there is no metrics sink {unknown[0]!r}; choose from {', '.join(sorted(SINKS))}")
    return [SINKS[name](run, folder) for name in names]


def tensorboard(run: str, folder: Path) -> Sink:
    writer = _import("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(folder / run))

    def write(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    return write


def wandb(run: str, folder: Path) -> Sink:
    opened = _import("wandb", "wandb").init(project="noria", name=run, dir=str(folder))
    return lambda step, metrics: opened.log(dict(metrics), step=step)


def trackio(run: str, folder: Path) -> Sink:
    module = _import("trackio", "trackio")
    module.init(project="noria", name=run)
    return lambda step, metrics: module.log(dict(metrics), step=step)


SINKS: Mapping[str, Callable[[str, Path], Sink]] = {"tensorboard": tensorboard, "wandb": wandb, "trackio": trackio}


def _import(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SinkError(f"metrics sink {package!r} is not installed; run: pip install 'noria[{package}]'") from error
