"""Held-out loss of a base model by source: nats a token and bits a byte, the same measure for the ladder and the run.

R held-out rows, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from noria.data.shards import heldout_rows, normalised
from noria.model import Transformer
from noria.training.batch import TokenBatch
from noria.training.step import mean_loss

EVALUATION_ROWS = 16  # a forward pass; bounds memory, not the result


@dataclass(frozen=True)
class HeldoutSource:
    """One source's rows and what turns their nats a token into bits a byte."""

    batches: tuple[TokenBatch, ...]
    tokens: int
    bytes_per_token: float
    weight: float


@dataclass(frozen=True)
class Heldout:
    """Held-out rows of every source that has any, weighted as the mixture weighs them."""

    sources: Mapping[str, HeldoutSource]

    @classmethod
    def load(
        cls, shards_dir: Path, weights: Mapping[str, float], sequence_length: int, max_rows: int, bos: int
    ) -> Heldout:
        """At most `max_rows` rows a source. A document starts at each `bos`, and attention stays inside documents, as
        in training. Raises ValueError when no source holds out a whole row."""
        found = {}
        for source, weight in normalised(weights).items():
            tokens_RT, bytes_per_token = heldout_rows(shards_dir, source, sequence_length, max_rows)
            if len(tokens_RT) == 0:
                continue
            tokens = torch.from_numpy(tokens_RT)
            batch = TokenBatch(tokens, torch.ones(len(tokens), sequence_length), (tokens == bos).cumsum(1))
            found[source] = HeldoutSource(
                tuple(batch.split(EVALUATION_ROWS)), len(tokens) * sequence_length, bytes_per_token, weight
            )
        if not found:
            raise ValueError(f"{shards_dir} holds out no row of {sequence_length + 1} tokens: hold out more documents")
        total = sum(source.weight for source in found.values())
        return cls(
            {
                name: HeldoutSource(source.batches, source.tokens, source.bytes_per_token, source.weight / total)
                for name, source in found.items()
            }
        )

    def losses(self, model: Transformer) -> dict[str, float]:
        """Nats a token by source."""
        model.eval()
        return {name: mean_loss(model, source.batches) for name, source in self.sources.items()}

    def mean(self, losses: Mapping[str, float]) -> float:
        """The mixture's loss: each source counts by its weight."""
        return sum(source.weight * losses[name] for name, source in self.sources.items())

    def bits_per_byte(self, losses: Mapping[str, float]) -> dict[str, float]:
        """Losses that do not depend on the tokenizer: nats a token / ln 2 / bytes a token."""
        return {name: losses[name] / math.log(2.0) / source.bytes_per_token for name, source in self.sources.items()}
