"""Evaluation: task families, models measured on them, statistics, and graders measured on known answers."""

from noria.evals.benchmarks import Item, run_benchmark, single_turn, summarise
from noria.evals.calibration import Calibration, calibrate, cases_for

__all__ = ["Calibration", "Item", "calibrate", "cases_for", "run_benchmark", "single_turn", "summarise"]
