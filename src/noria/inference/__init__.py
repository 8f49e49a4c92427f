"""Inference: the engine that generates every token in noria, and scores them."""

from noria.inference.engine import Completion, Engine, Handle, Request, RequestTooLong, Sampler, score
from noria.inference.sampler import SamplingParams

__all__ = ["Completion", "Engine", "Handle", "Request", "RequestTooLong", "Sampler", "SamplingParams", "score"]
