"""Pretraining on several ranks: a job in a file, the process that works on its share, and the caller's side.

torchrun --standalone --nproc-per-node 2 -m noria.training.worker job.json
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from noria.data.shards import TokenStream
from noria.model import ModelConfig, Transformer
from noria.training.checkpoint import CheckpointError
from noria.training.guard import Event, WorkerFault
from noria.training.launch import BAD_USE, FAULT, launch
from noria.training.loop import LoopConfig
from noria.training.parallel import Layout, parallelize, whole_state
from noria.training.pretraining import pretrain
from noria.training.run import History, Progress

WEIGHTS, HISTORY = "whole.safetensors", "history.json"
# Weights, gradients and two moments in fp32; a machine that holds one such replica a rank need not cut it up.
LARGEST_REPLICA_BYTES, STATE_BYTES_PER_PARAMETER = 2 << 30, 16


class Job(BaseModel):
    """A pretraining run, whole: what each rank needs to take its share of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelConfig
    loop: LoopConfig
    shards: Path
    weights: dict[str, float] = Field(description="of the mixture, by source")
    sequence_length: int = Field(gt=0, description="tokens a row")
    batch_rows: int = Field(gt=0, description="rows a step, over all ranks")
    seed: int
    folder: Path = Field(description="of checkpoints and, at the end, the result")
    layout: Layout = "replicate"
    threads: int = Field(default=1, ge=1, description="of each rank")
    checkpoint_seconds: float = 15.0
    timeout_seconds: float = Field(default=600.0, gt=0, description="how long a rank waits for another")


def layout_for(model: ModelConfig) -> Layout:
    """Replicas where they are small, which lets the guard compare them; shards where they are not."""
    return "replicate" if model.parameters() * STATE_BYTES_PER_PARAMETER <= LARGEST_REPLICA_BYTES else "shard"


def pretrain_together(
    job: Job, processes: int, progress: Progress, restarts: int = 3
) -> tuple[dict[str, Tensor], History]:
    """Run `job` on `processes` ranks of this machine: (whole state dict, history). Restarts from the last checkpoint
    when a rank dies. Raises LaunchError."""
    job.folder.mkdir(parents=True, exist_ok=True)
    path = job.folder / "job.json"
    path.write_text(job.model_dump_json(), encoding="utf-8")

    def hear(told: Mapping[str, Any]) -> None:
        if told["kind"] == "step" and progress.on_step:
            progress.on_step(told["step"], told["steps"], told["metrics"])
        elif "cause" in told and progress.on_event:
            progress.on_event(Event(**told))

    launch([sys.executable, "-m", "noria.training.worker", str(path)], processes, hear, restarts)
    history = json.loads((job.folder / HISTORY).read_text(encoding="utf-8"))
    state = load_file(job.folder / WEIGHTS)
    if job.model.tied:
        state["head.weight"] = state["embedding.weight"]
    return state, history


def work(job: Job) -> None:
    """Take this rank's share of a job; the first rank writes the result. Needs torchrun's variables."""
    torch.set_num_threads(job.threads)
    dist.init_process_group("gloo", timeout=timedelta(seconds=job.timeout_seconds))
    model = Transformer(job.model, seed=job.seed)
    ranks = parallelize(model, job.layout)
    stream = TokenStream(job.shards, job.weights, job.sequence_length, job.batch_rows, job.seed)
    progress = Progress(
        job.folder,
        checkpoint_seconds=job.checkpoint_seconds,
        on_step=lambda step, steps, metrics: _say(kind="step", step=step, steps=steps, metrics=dict(metrics)),
        on_event=lambda event: _say(**event.to_json()),
        ranks=ranks,
    )
    history = pretrain(model, stream, job.loop, progress)
    state = whole_state(model)
    if ranks.is_first:
        tied = {"head.weight"} if job.model.tied else set()
        save_file(
            {name: tensor.contiguous() for name, tensor in state.items() if name not in tied}, job.folder / WEIGHTS
        )
        unfinished = job.folder / f"{HISTORY}.new"
        unfinished.write_text(json.dumps(history), encoding="utf-8")
        os.replace(unfinished, job.folder / HISTORY)
    ranks.barrier()
    dist.destroy_process_group()


def main(path: str) -> int:
    try:
        work(Job.model_validate_json(Path(path).read_text(encoding="utf-8")))
    except WorkerFault as fault:
        _say(kind="error", message=str(fault))
        return FAULT
    except (CheckpointError, FloatingPointError, ValueError) as error:
        _say(kind="error", message=str(error))
        return BAD_USE
    return 0


def _say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    code = main(sys.argv[1])
    os._exit(code)  # a failed rank must not wait for others to close their connections
