"""What the experiments train: the shards of recipes/nano.toml, small models of one family, the project's own loop."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from noria.artifacts import Executor, Store
from noria.assembly import build
from noria.data.shards import TokenStream
from noria.data.tokenizer import Tokenizer
from noria.model import ModelConfig, Transformer
from noria.recipe import load
from noria.training import History, LoopConfig
from noria.training.heldout import Heldout
from noria.training.pretraining import pretrain

RECIPE = Path(__file__).parent.parent / "recipes" / "nano.toml"
LENGTH = 256


@dataclass(frozen=True)
class Text:
    """Tokenised training text with its mixture, and held-out rows of each source."""

    shards: Path
    tokenizer: Path

    @cached_property
    def weights(self) -> Mapping[str, float]:
        return json.loads((self.shards / "shards.json").read_text())["weights"]

    @cached_property
    def vocab_size(self) -> int:
        return Tokenizer.load(self.tokenizer).vocab_size

    @cached_property
    def heldout(self) -> Heldout:
        return Heldout.load(self.shards, self.weights, LENGTH, 32, Tokenizer.bos)

    def stream(self, batch_tokens: int, seed: int) -> TokenStream:
        return TokenStream(self.shards, self.weights, LENGTH, batch_tokens // LENGTH, seed)

    def shape(self, width: int, layers: int, **options: Any) -> ModelConfig:
        """A model of the nano family: heads of 32, half as many key/value heads, feed-forward of four widths."""
        heads = width // 32
        plain = {"heads": heads, "kv_heads": max(1, heads // 2), "ffn_width": 4 * width, "context": LENGTH}
        return ModelConfig(vocab_size=self.vocab_size, width=width, layers=layers, **{**plain, **options})

    def train(self, model: Transformer, config: LoopConfig, batch_tokens: int, seed: int) -> tuple[History, float]:
        """Train in place; the history and the mixture's held-out loss in nats a token."""
        history = pretrain(model, self.stream(batch_tokens, seed), config)
        return history, self.loss(model)

    def loss(self, model: Transformer) -> float:
        return self.heldout.mean(self.heldout.losses(model))


def text(store: str = "store", threads: int = 2) -> Text:
    """The shards of the nano recipe, from `store` or made into it."""
    torch.set_num_threads(threads)
    opened = Store(Path(store))
    steps = {step.name: step for step in build(load(RECIPE, []), 1, opened)}
    wanted = [steps[name] for name in ("registry", "raw_data", "corpus", "tokenizer", "shards")]
    made = Executor(opened, "experiments").run(wanted)
    return Text(made["shards"].content, made["tokenizer"].content / "tokenizer.json")
