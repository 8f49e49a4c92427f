"""A small real run with one injected fault, alone or as one rank of several: what `benchmarks.faults` starts.

    python -m benchmarks.fault_job FOLDER --fault weight_bit

A byte model on the text of Python's own documentation. Faults are injected from outside: hooks on the model, batches
that are wrong, signals. The result lies in FOLDER/result.json.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import math
import os
import pydoc_data.topics
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner

from noria.model import ModelConfig, Transformer
from noria.training import (
    Annotated,
    Event,
    GuardConfig,
    LoopConfig,
    Progress,
    TokenBatch,
    WorkerFault,
    mean_loss,
    train,
)
from noria.training.checkpoint import complete
from noria.training.launch import BAD_USE, FAULT
from noria.training.parallel import ALONE, Ranks, local, parallelize, whole_state

MODEL = ModelConfig(vocab_size=256, width=64, layers=2, heads=2, kv_heads=1, ffn_width=128, context=64)
ROWS = 8
AT = 130  # the step of a fault; the anchor before it is at 100
LEFT = 30  # where `left_early` ends every rank, in order; the checkpoint before it is at 25
POISONED = range(AT, AT + 12)
Annotate = Callable[[int], Annotated]


def loop_config(steps: int) -> LoopConfig:
    guard = GuardConfig(spikes=True, make_up=True, replay_steps=100)
    return LoopConfig(steps=steps, learning_rate=0.01, warmup_steps=20, micro_batch_rows=4, guard=guard)


def batches(seed: int = 0) -> Annotate:
    """Windows of the text, drawn by (seed, step)."""
    text = "\n".join(pydoc_data.topics.topics.values()).encode()
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()

    def annotate(step: int) -> Annotated:
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        starts = torch.randint(0, len(data) - MODEL.context - 1, (ROWS, 1), generator=generator)
        tokens_BT = data[starts + torch.arange(MODEL.context + 1)]
        return Annotated(TokenBatch(tokens_BT, torch.ones(ROWS, MODEL.context)))

    return annotate


def flip_bit(tensor: Tensor, bit: int) -> None:
    """Flip a bit of the first number of this rank's part, in place."""
    local(tensor.detach()).view(torch.int32).view(-1)[0] ^= 1 << bit


def disturbed(fault: str, model: Transformer, ranks: Ranks, folder: Path, clean: Annotate) -> Annotate:
    """`clean` with `fault` injected: at step AT, on the last rank where only one is meant, once in the run's life."""
    is_victim = ranks.rank == ranks.count - 1
    once = folder / "injected"
    armed: list[int] = []

    def first_time() -> bool:
        if once.exists() or not is_victim:
            return False
        once.touch()
        return True

    def annotate(step: int) -> Annotated:
        annotated = clean(step)
        if fault == "nan_batch" and step == AT:
            return Annotated(replace(annotated.batch, w_ce=torch.full_like(annotated.batch.w_ce, math.nan)))
        if fault == "poisoned_range" and step in POISONED:
            noise = torch.randint(
                0, 256, annotated.batch.tokens_BT.shape, generator=torch.Generator().manual_seed(step)
            )
            return Annotated(replace(annotated.batch, tokens_BT=noise))
        if fault.startswith("weight_bit") and step == AT and first_time():
            flip_bit(model.blocks[0].up.weight, bit=0 if fault == "weight_bit_low" else 30)
        if fault == "left_early" and step == LEFT and not (folder / "left" / str(ranks.rank)).exists():
            _leave(folder, ranks)
        if fault == "gradient_bit" and step == AT and first_time():
            armed.append(step)
        if fault == "killed_rank" and step == AT and first_time():
            os.kill(os.getpid(), signal.SIGKILL)
        return annotated

    if fault == "slow_rank" and is_victim:
        model.blocks[0].register_forward_pre_hook(lambda *_: time.sleep(0.05))
    if fault == "gradient_bit":
        _flip_when_armed(model, armed)
    if fault == "full_disk":
        _fill_disk(first_time)
    if fault == "replica_drift" and is_victim:
        _drift_after(model, AT, first_time)
    return annotate


def _leave(folder: Path, ranks: Ranks) -> None:
    """End this process without a word, once the checkpoint being written is there."""
    while not complete(folder / "checkpoints"):
        time.sleep(0.02)
    (folder / "left").mkdir(exist_ok=True)
    (folder / "left" / str(ranks.rank)).touch()
    ranks.barrier()
    os._exit(0)


def _flip_when_armed(model: Transformer, armed: list[int]) -> None:
    """Flip a bit of what flows back through the first block, once for each entry of `armed`."""

    def hook(module: nn.Module, gradients: tuple[Tensor, ...], _: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not armed:
            return gradients
        armed.pop()
        flipped = gradients[0].clone()
        flip_bit(flipped, bit=30)
        return (flipped,)

    model.blocks[0].up.register_full_backward_hook(hook)


def _fill_disk(first_time: Callable[[], bool]) -> None:
    """The fifth checkpoint finds no room after half of its bytes."""
    write, saves = FileSystemWriter.write_data, 0

    def full(self: FileSystemWriter, plan: SavePlan, planner: SavePlanner) -> Any:
        nonlocal saves
        saves += 1
        if saves == 5 and first_time():
            (Path(self.path) / "half").write_bytes(b"x" * 1000)
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, plan, planner)

    FileSystemWriter.write_data = full


def _drift_after(model: Transformer, step: int, first_time: Callable[[], bool]) -> None:
    """A wrong update: as the optimiser of this rank alone would write it, so that its own checksum is of the error."""
    from noria.training.optim import MuonAdamW

    right, count = MuonAdamW.step, 0

    def wrong(self: MuonAdamW, closure: None = None) -> None:
        nonlocal count
        right(self, closure)
        count += 1
        if count == step and first_time():
            flip_bit(model.final_norm.weight, bit=3)

    MuonAdamW.step = wrong


def run(folder: Path, fault: str, layout: str, steps: int, seed: int, model_seed: int) -> None:
    torch.set_num_threads(1)
    model, ranks = Transformer(MODEL, seed=model_seed), ALONE
    events: list[dict[str, Any]] = []
    if layout != "alone":
        dist.init_process_group("gloo")
        ranks = parallelize(model, layout)
    folder.mkdir(parents=True, exist_ok=True)
    annotate = disturbed(fault, model, ranks, folder, batches(seed))

    def on_event(event: Event) -> None:
        events.append(event.to_json())
        say(**event.to_json())

    progress = Progress(
        folder / "checkpoints",
        on_step=lambda step, total, metrics: say(kind="step", step=step),
        on_event=on_event,
        checkpoint_steps=25,
        ranks=ranks,
    )
    history = train(model, annotate, loop_config(steps), progress)
    heldout = fixed_loss(model)
    state = whole_state(model)
    if ranks.is_first:
        digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in state.values())).hexdigest()
        result = {
            "losses": [row.get("loss_ce") for row in history],
            "heldout": heldout,
            "events": events,
            "weights": digest,
        }
        (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    if layout != "alone":
        ranks.barrier()
        dist.destroy_process_group()


def fixed_loss(model: Transformer) -> float:
    """Mean loss on batches that are the same for every run: the last training steps of a run that made up for steps
    left out have other data than those of the undisturbed one. Every rank takes part."""
    annotate = batches(seed=1_000_000)
    with torch.no_grad():
        return mean_loss(model, [annotate(step).batch for step in range(16)])


def say(**values: object) -> None:
    print(json.dumps(values), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fault", default="none")
    parser.add_argument("--layout", choices=["alone", "replicate", "shard"], default="alone")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of the batches")
    parser.add_argument("--model-seed", type=int, default=0)
    options = parser.parse_args()
    try:
        run(options.folder, options.fault, options.layout, options.steps, options.seed, options.model_seed)
    except WorkerFault as fault:
        say(kind="error", message=str(fault))
        return FAULT
    except (ValueError, FloatingPointError) as error:
        say(kind="error", message=str(error))
        return BAD_USE
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
