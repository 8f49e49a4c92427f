"""What one trace may use, and how it is sampled."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """What one conversation may use, in units that do not depend on the machine."""

    turns: int = 1  # model calls
    tokens_per_turn: int = 64  # sampled
    tokens: int = 1 << 20  # sampled, all turns together
    context: int = 1 << 20  # tokens that prompt and reply may fill together; the model's context
    result_bytes: int = 2048  # of a tool's result that are shown
    calls_per_turn: int = 16  # of tools in one reply; further ones are invalid
    tool_calls: int = 1 << 20  # of all turns together; where they are used up the next one ends the trace

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"budget {name} = {value}: must be at least 1")


@dataclass(frozen=True)
class Sampling:
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
