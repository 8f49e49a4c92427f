"""Pretraining as a user of the one loop: the mixture's batches, each token weighted 1, documents kept apart."""

from __future__ import annotations

import torch

from noria.data.shards import TokenStream
from noria.model import Transformer
from noria.training.batch import TokenBatch
from noria.training.loop import Annotated, LoopConfig, train
from noria.training.run import History, Progress


def pretrain(model: Transformer, stream: TokenStream, config: LoopConfig, progress: Progress | None = None) -> History:
    """Train `model` in place on `stream`, whose batch at a step depends on (seed, step) alone: resume is exact.

    Raises ValueError when the stream holds a token that the model's vocabulary does not.
    """

    def annotate(step: int) -> Annotated:
        batch = batch_at(stream, step)
        largest = int(batch.tokens_BT.max())
        if largest >= model.config.vocab_size:
            raise ValueError(
                f"step {step}: the shards hold token {largest}, and the model has {model.config.vocab_size} tokens; "
                "make the shards or the plan again with the tokenizer of the other"
            )
        return Annotated(batch)

    return train(model, annotate, config, progress)


def batch_at(stream: TokenStream, step: int) -> TokenBatch:
    """The batch of `step`, every target with weight 1."""
    tokens_BT, segment_BT = stream.batch(step)
    every_target = torch.ones(tokens_BT.shape[0], tokens_BT.shape[1] - 1)
    return TokenBatch(torch.from_numpy(tokens_BT), every_target, torch.from_numpy(segment_BT))
