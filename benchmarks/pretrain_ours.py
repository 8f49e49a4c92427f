"""Our side of `benchmarks/pretrain.py`: the whole loop, guard and record included, or only the matmuls of a step."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.pretrain_peers import turns
from noria.model import ModelConfig, Transformer
from noria.training import Annotated, LoopConfig, TokenBatch, train


def model_config(case: dict[str, Any]) -> ModelConfig:
    shape = {name: value for name, value in case.items() if name not in ("rows", "length")}
    return ModelConfig(**shape, context=case["length"], activation="swiglu", qk_norm=False)


def loop(case: dict[str, Any], variant: str, turn: Iterator[None]) -> None:
    """Train; where the loop asks for its batch it waits for its turn."""
    config = LoopConfig(
        steps=1_000_000,
        learning_rate=1e-3,
        schedule="constant",
        muon=variant == "muon",
        micro_batch_rows=case["rows"],
        precision="bfloat16",
        weight_precision="bfloat16" if variant == "bf16 weights" else "float32",
        compile=True,
    )
    tokens_BT = torch.randint(0, case["vocab_size"], (case["rows"], case["length"] + 1))
    # Documents of 60 tokens on average, as packed pretraining rows have them; otherwise one document a row.
    segment_BT = (torch.rand(tokens_BT.shape) < 1 / 60).cumsum(1) if variant == "documents" else None
    batch = TokenBatch(tokens_BT, torch.ones(case["rows"], case["length"]), segment_BT)

    def annotate(step: int) -> Annotated:
        next(turn)
        return Annotated(batch)

    train(Transformer(model_config(case)), annotate, config)


def matmuls(case: dict[str, Any]) -> Callable[[], None]:
    """Every matrix product of a step, in bf16 at its shapes, alone: projections, feed-forward, head, attention's two
    products; each once forward and twice backward (by the input and by the weight)."""
    config = model_config(case)
    tokens, heads, groups = case["rows"] * case["length"], config.heads, config.kv_heads
    own, shared = heads * config.head_width, groups * config.head_width
    layer = [(config.width, own), (config.width, shared), (config.width, shared), (own, config.width)]
    layer += [(config.width, config.ffn_width)] * 2 + [(config.ffn_width, config.width)]
    shapes = layer * config.layers + [(config.width, config.vocab_size)]
    weights = [torch.randn(rows, columns).bfloat16() for columns, rows in shapes]
    inputs = {width: torch.randn(tokens, width).bfloat16() for width in {size for shape in shapes for size in shape}}
    query = torch.randn(case["rows"] * groups, heads // groups * case["length"], config.head_width).bfloat16()
    key = torch.randn(case["rows"] * groups, case["length"], config.head_width).bfloat16()
    share = torch.randn(case["rows"] * groups, heads // groups * case["length"], case["length"]).bfloat16()

    def step() -> None:
        for weight in weights:
            rows, columns = weight.shape
            x, gradient = inputs[columns], inputs[rows]
            F.linear(x, weight)
            gradient @ weight
            gradient.mT @ x
        for _ in range(config.layers):
            query @ key.mT  # scores, and likewise the gradient of the shares
            query @ key.mT
            share @ key  # the mixture, and likewise the gradient of the queries
            share @ key
            share.mT @ query  # the gradients of keys and of values
            share.mT @ query

    return step


def main() -> None:
    task = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    torch.manual_seed(0)
    turn = turns(f"noria {importlib.metadata.version('noria')}", task["warmup"])
    if task["kind"] == "ours":
        loop(task["case"], task["variant"], turn)
        return
    step = matmuls(task["case"])
    for _ in turn:
        step()


if __name__ == "__main__":
    main()
