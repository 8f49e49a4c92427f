"""What an engine is asked and what it answers, as plain values: whoever only asks needs no tensors to say so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from noria.inference.structured import Constraint

Finish = Literal["stop", "length", "aborted"]
Likeliest = tuple[tuple[int, float], ...]


class SamplingParams(BaseModel):
    """How one request is sampled. Temperature 0 is greedy. Refuses values outside their range."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=1.0, ge=0.0, le=10.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0, description="0 keeps all tokens")
    min_p: float = Field(default=0.0, ge=0.0, le=1.0, description="least share of the likeliest token's probability")
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0, description="off a token's logit once it was sampled")
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0, description="off it for each time it was sampled")
    repetition_penalty: float = Field(
        default=1.0, gt=0.0, le=10.0, description="logits of tokens in prompt or reply: over it, negative ones times it"
    )
    logit_bias: Mapping[int, float] = Field(default={}, description="token id -> added to its logit")
    seed: int = 0
    stop_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = Field(default=(), description="a reply ends once its text holds one of these")
    top_logprobs: int = Field(default=0, ge=0, le=100, description="likeliest tokens reported at each place")

    @property
    def truncates(self) -> bool:
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0)

    @property
    def penalises(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1 or self.logit_bias)


@dataclass(frozen=True)
class Request:
    """`structure` makes what keeps the reply to a form, anew for each reply (`structured.py`)."""

    prompt_ids: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    structure: Callable[[], Constraint] | None = None


@dataclass(frozen=True)
class Completion:
    """What was sampled, the end token included, with the log-probability of each token as sampled."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Finish
    policy_version: int
    # At each place the likeliest (token id, log-probability), where the request asked for `top_logprobs`.
    top_logprobs: tuple[Likeliest, ...] = ()


class RequestTooLong(ValueError):
    """The prompt leaves no room for a single new token in the model's context."""


class Sampler(Protocol):
    """What rollouts need of an engine, whichever it is."""

    def generate(self, requests: Sequence[Request]) -> list[Completion]: ...
