"""Inference: the engine that generates every token in noria, and scores them."""

from noria.inference.cache import affordable_rows
from noria.inference.engine import Completion, Engine, Handle, Request, RequestTooLong, Sampler, score
from noria.inference.sampler import SamplingParams

__all__ = [
    "Completion",
    "Engine",
    "Handle",
    "Request",
    "RequestTooLong",
    "Sampler",
    "SamplingParams",
    "affordable_rows",
    "score",
]
