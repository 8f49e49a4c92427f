"""Inference: the engine that generates every token in noria, and scores them."""

from noria.inference.cache import affordable_rows
from noria.inference.engine import Completion, Engine, Handle, Request, RequestTooLong, Sampler
from noria.inference.sampler import SamplingParams
from noria.inference.scoring import Logprobs, score

__all__ = [
    "Completion",
    "Engine",
    "Handle",
    "Logprobs",
    "Request",
    "RequestTooLong",
    "Sampler",
    "SamplingParams",
    "affordable_rows",
    "score",
]
