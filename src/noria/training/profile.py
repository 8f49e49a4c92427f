"""Where the time of a training step goes, and what would change it.

    python -m noria.training.profile MODEL_FOLDER [--rows 8] [--length 256] [--precision bfloat16] [--compile]
    python -m noria.training.profile --shape '{"vocab_size": 8192, "width": 256, "layers": 4, ...}'

Runs the loop itself on random tokens: a few steps to time, then one under PyTorch's profiler. The utilisation (MFU) is
of the fastest matrix product that this machine was seen to do in the same precision. Changes no file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from noria.model import ModelConfig, Transformer
from noria.model.folder import read_config
from noria.training.accounting import measure_peak, utilisation
from noria.training.batch import TokenBatch
from noria.training.loop import Annotated, LoopConfig, train

# Everything within these operators is theirs, by a part of the outer name: an optimiser's products are the optimiser's.
WITHIN = {"optimiser": "Optimizer", "attention": "attention"}
# Otherwise by the operator's own name. Compiled, norms, activations and rotations are one kernel.
OWN = {
    "matrix products": ("::mm", "::bmm", "::addmm", "::baddbmm", "grouped_mm", "mkldnn_linear"),
    "loss": ("softmax", "ChunkedSums", "logsumexp"),
    "norms": ("norm",),
    "compiled kernels": ("CompiledFxGraph", "CompiledFunction", "Torch-Compiled"),
}
OTHER = "other (copies, element-wise operations, Python)"


@dataclass(frozen=True)
class Profile:
    """`shares` are of the profiled step's time, by kind, the largest first; `seconds` the median of the others."""

    seconds: float
    tokens_per_second: float
    utilisation: float
    shares: Mapping[str, float]


def profile_steps(model: Transformer, batch: TokenBatch, config: LoopConfig, peak_flops_per_second: float) -> Profile:
    """Train for `config.steps` (at least 4): two to warm up, the last under the profiler, those between timed."""
    started: list[float] = []
    profiler = profile(activities=[ProfilerActivity.CPU])

    def annotate(step: int) -> Annotated:
        started.append(time.perf_counter())
        if step == config.steps - 1:
            profiler.start()
        return Annotated(batch)

    train(model, annotate, config)
    profiler.stop()
    seconds = statistics.median(later - sooner for sooner, later in pairwise(started[2:]))
    targets = batch.tokens_BT[:, 1:]
    rate = targets.numel() / seconds
    times = [(_path(event), event.self_cpu_time_total) for event in profiler.events()]
    used = utilisation(model.config, rate, peak_flops_per_second, targets.shape[1])
    return Profile(seconds, rate, used, shares_by_kind(times))


def shares_by_kind(times: Iterable[tuple[Sequence[str], float]]) -> dict[str, float]:
    """From (an operator and those that called it, inmost first; its own time) to the share of each kind."""
    sums: dict[str, float] = {}
    for path, spent in times:
        kind = _kind(path)
        sums[kind] = sums.get(kind, 0.0) + spent
    total = sum(sums.values()) or 1.0
    return {kind: sums[kind] / total for kind in sorted(sums, key=lambda kind: -sums[kind])}


def _kind(path: Sequence[str]) -> str:
    outer = next((kind for kind, part in WITHIN.items() if any(part in name for name in path)), None)
    return outer or next((kind for kind, parts in OWN.items() if any(part in path[0] for part in parts)), OTHER)


def _path(event: Any) -> list[str]:
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    return names


def advice(found: Profile, config: LoopConfig, tokens_a_step: int) -> list[str]:
    """What a user would change next, the largest gain first."""
    said = []
    if config.precision == "float32":
        said.append("precision = bfloat16: products several times as fast on a processor with bf16 units (avx512_bf16)")
    if not config.compile:
        said.append("compile = true: fuses norms, activations and rotations, and makes attention in whole blocks")
    if found.shares.get("optimiser", 0.0) > 0.1:
        said.append(f"more tokens a step than {tokens_a_step:,}: the optimiser's cost does not grow with them")
    if config.recompute_activations:
        said.append("recompute_activations = false, if memory allows: a third of the products are made twice")
    return said or ["nothing obvious: the largest row above is what limits it"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="a model folder; its weights are not read, only its shape")
    parser.add_argument("--shape", help="a model configuration as JSON, in place of a folder")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, help="tokens a row; default: the model's context")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--weight-precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--recompute-activations", action="store_true")
    parser.add_argument("--adamw", action="store_true", help="AdamW for all in place of Muon")
    options = parser.parse_args()
    if (options.folder is None) == (options.shape is None):
        parser.error("give either a model folder or --shape")
    if options.steps < 4:
        parser.error("--steps must be at least 4: two warm up, one is profiled")
    model = Transformer(read_config(options.folder)[0] if options.folder else ModelConfig(**json.loads(options.shape)))
    if options.weight_precision == "bfloat16" and options.precision == "float32":
        parser.error("--weight-precision bfloat16 needs --precision bfloat16")
    length = options.length or model.config.context
    config = LoopConfig(
        steps=options.steps,
        learning_rate=1e-3,
        micro_batch_rows=options.rows,
        muon=not options.adamw,
        precision=options.precision,
        weight_precision=options.weight_precision,
        compile=options.compile,
        recompute_activations=options.recompute_activations,
    )
    tokens_BT = torch.randint(0, model.config.vocab_size, (options.rows, length + 1))
    batch = TokenBatch(tokens_BT, torch.ones(options.rows, length))
    peak = measure_peak(torch.bfloat16 if options.precision == "bfloat16" else torch.float32)
    show(profile_steps(model, batch, config, peak.flops_per_second), config, options.rows * length)


def show(found: Profile, config: LoopConfig, tokens_a_step: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"one step: {tokens_a_step:,} tokens, {config.precision}{', compiled' * config.compile}")
    table.add_column("kind")
    table.add_column("share", justify="right")
    for kind, share in found.shares.items():
        table.add_row(kind, f"{share:.1%}")
    console = Console()
    console.print(table)
    console.print(
        f"{found.seconds:.3g} s a step, {found.tokens_per_second:,.0f} tokens/s, MFU {found.utilisation:.1%} "
        f"of the measured {config.precision} peak"
    )
    for line in advice(found, config, tokens_a_step):
        console.print(f"- {line}")


if __name__ == "__main__":
    main()
