"""Inference: the engine that generates every token in noria, and scores them.

What computes is loaded when it is first asked for: a harness that only speaks to an engine does without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from noria.inference.request import Completion, Request, RequestTooLong, Sampler, SamplingParams

if TYPE_CHECKING:
    from noria.inference.cache import affordable_rows
    from noria.inference.engine import Engine, Handle
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

_LOADED_LATE = {
    "Engine": "engine",
    "Handle": "engine",
    "Logprobs": "scoring",
    "affordable_rows": "cache",
    "score": "scoring",
}


def __getattr__(name: str) -> Any:
    if name not in _LOADED_LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LOADED_LATE[name]}"), name)
