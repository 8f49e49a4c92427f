"""Our side of `benchmarks/generate.py`: the engine, and the limits of the machine that it is held against."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.generate_peers import Generate, serve
from noria.inference import Engine, Request, SamplingParams
from noria.inference.weights import multiply, pack
from noria.model import Transformer, load_model

NEVER = -1  # no token has this id: with it as the end, every reply has the same length
READ_BYTES, PRODUCT_SIZE = 2**30, 2048
LIMIT_TRIES = 5
# Of a weight in a layer and in the head; int4 has a scale in fp32 for 32 weights.
BYTES = {"float32": (4, 4), "bfloat16": (2, 4), "int8": (1, 1), "int4": (0.625, 1)}


def engine(task: dict[str, Any]) -> tuple[str, Generate]:
    model = load_model(Path(task["model"]))
    weights, weight_bytes = weights_of(model, task["variant"])
    room = {"max_rows": task["batch"], "context": task["context"]}
    found = Engine(model, NEVER, **room, precision=task["variant"], consume_model=True)
    gc.collect()

    def generate(prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        params = SamplingParams(max_tokens=tokens, temperature=0.0)
        done = found.generate([Request(prompt, params) for prompt in prompts])
        lengths = [len(completion.token_ids) for completion in done]
        sizes = {"kept_bytes": found.weight_bytes, "resident_bytes": resident_bytes()}
        return {"lengths": lengths, "weights": weights, "weight_bytes": weight_bytes, **sizes}

    return f"noria {importlib.metadata.version('noria')}", generate


def resident_bytes() -> int:
    """Memory of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def weights_of(model: Transformer, precision: str) -> tuple[int, int]:
    """(weights that a token is multiplied with, their bytes in the engine)."""
    layers = {path: module.weight.numel() for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    of_layer, of_head = BYTES[precision]
    return sum(layers.values()), sum(
        int(count * (of_head if path == "head" else of_layer)) for path, count in layers.items()
    )


def limits(task: dict[str, Any]) -> tuple[str, Generate]:
    """Best of a few: bytes a second of summing a large array, operations a second of a large product."""
    array = torch.ones(READ_BYTES // 4)
    square = torch.randn(PRODUCT_SIZE, PRODUCT_SIZE)
    dtypes = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    plain = {name: square.to(dtype) for name, dtype in dtypes.items()}
    packed = {name: pack(square, dtype) for name, dtype in dtypes.items()}

    def seconds(name: str) -> float:
        x = plain[name]
        return min(best(lambda: x @ x), best(lambda: multiply(x, packed[name])))

    @torch.inference_mode()
    def measure(prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        products = {name: 2 * PRODUCT_SIZE**3 / seconds(name) for name in dtypes}
        return {"bandwidth": READ_BYTES / best(array.sum), "products": products}

    return "limits", measure


def best(work: Callable[[], object]) -> float:
    return min(_seconds(work) for _ in range(LIMIT_TRIES))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    task: dict[str, Any] = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    serve(*{"ours": engine, "limits": limits}[task["kind"]](task))


if __name__ == "__main__":
    main()
