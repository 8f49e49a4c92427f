"""Planning: what to train with a budget, from formulas and fits alone. Whoever trains the small models calls these."""

from noria.planning.budget import (
    BudgetError,
    Choice,
    MeasuredRate,
    Schedule,
    ShapeFamily,
    batch_tokens,
    best_rate,
    choose,
    forecast_seconds,
    learning_rate,
    round_to,
    schedule,
    tokens_within,
)
from noria.planning.memory import TrainingMemory, serving_bytes, training_bytes
from noria.planning.scaling import Fit, Law, Point, fit_law, fit_with_uncertainty, intervals, predict

__all__ = [
    "BudgetError",
    "Choice",
    "Fit",
    "Law",
    "MeasuredRate",
    "Point",
    "Schedule",
    "ShapeFamily",
    "TrainingMemory",
    "batch_tokens",
    "best_rate",
    "choose",
    "fit_law",
    "fit_with_uncertainty",
    "forecast_seconds",
    "intervals",
    "learning_rate",
    "predict",
    "round_to",
    "schedule",
    "serving_bytes",
    "tokens_within",
    "training_bytes",
]
