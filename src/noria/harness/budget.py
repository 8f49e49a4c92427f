"""What one trace may use, and how it is sampled."""

from __future__ import annotations

from dataclasses import dataclass

UNBOUNDED = 1 << 20  # tokens that no conversation comes near


@dataclass(frozen=True)
class Budget:
    """What one conversation may use, in units that do not depend on the machine.

    An endpoint's tokens are known only from its counts: there `context` ends a trace with the reply that went beyond
    it. One that does not count fails with `model_error` where `context` or `tokens` is below UNBOUNDED.
    """

    turns: int = 1  # model calls
    tokens_per_turn: int = 64  # sampled
    tokens: int = UNBOUNDED  # sampled, all turns together
    context: int = UNBOUNDED  # tokens that prompt and reply may fill together; the model's context
    result_bytes: int = 2048  # of a tool's result that are shown
    calls_per_turn: int = 16  # of tools in one reply; further ones are invalid
    tool_calls: int = 1 << 20  # of all turns together; where they are used up the next one ends the trace

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"budget {name} = {value}: must be at least 1")

    @property
    def needs_counts(self) -> bool:
        """Whether it bounds tokens that only a count of them can keep to."""
        return min(self.tokens, self.context) < UNBOUNDED


@dataclass(frozen=True)
class Sampling:
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
