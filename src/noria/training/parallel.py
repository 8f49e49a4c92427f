"""Data parallelism, applied from outside: the model file knows nothing of it.

`parallelize` turns a model into a replica (every rank holds all of it) or a shard of FSDP2 (every rank holds its rows
of every matrix) over a DeviceMesh. Every rank sees the whole batch of a step and takes its rows, so the tokens and
their order are those of one process; gradients are summed, not averaged, because each term is already divided by the
weighted tokens of the whole step.

R ranks, K numbers each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from noria.training.batch import TokenBatch

Layout = Literal["replicate", "shard"]

# Gradients travel in flat buffers of this many numbers: few collectives, and a bounded copy beside the gradients.
BUCKET_NUMBERS = 8 << 20


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that train one model together. Collectives are no-ops for a process alone.

    `saving` is a second process group, so that a checkpoint written in the background can't mix its messages with
    those of training.
    """

    rank: int = 0
    count: int = 1
    sharded: bool = False
    saving: Any = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def micro_batches(self, batch: TokenBatch, rows: int) -> list[TokenBatch]:
        """This rank's rows in micro-batches. All sharded ranks get equally many; those left over carry no weight.

        Rows are dealt out in turn, so that rows sorted by length cost every rank the same.
        """
        if self.count == 1:
            return batch.split(rows)
        total = batch.tokens_BT.shape[0]
        micro = batch.every(self.rank, self.count).split(rows) if self.rank < total else []
        if self.sharded:
            most_rows = math.ceil(total / self.count)
            micro += [batch.rows(0, 1).weightless()] * (math.ceil(most_rows / rows) - len(micro))
        return micro

    def gather(self, values_K: Tensor) -> Tensor:
        """(R, K): every rank's numbers, the same on all."""
        if self.count == 1:
            return values_K[None]
        parts = [torch.empty_like(values_K) for _ in range(self.count)]
        dist.all_gather(parts, values_K)
        return torch.stack(parts)

    def barrier(self) -> None:
        if self.count > 1:
            dist.barrier()


ALONE = Ranks()


def parallelize(model: nn.Module, layout: Layout, device: str = "cpu") -> Ranks:
    """Spread `model` in place over all ranks of the process group that torchrun's variables describe.

    Both layouts start from rank 0's weights. `shard` cuts each block on its own (FSDP2), so that only one block's
    weights are whole at a time. Raises RuntimeError where no process group was started.
    """
    if not dist.is_initialized():
        raise RuntimeError("no process group: start with torchrun, or call torch.distributed.init_process_group")
    mesh = dist.device_mesh.init_device_mesh(device, (dist.get_world_size(),), mesh_dim_names=("data",))
    with torch.no_grad():
        for parameter in model.parameters():
            dist.broadcast(parameter, src=0)
    if layout == "shard":
        from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

        for block in model.blocks:  # type: ignore[union-attr]
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        register_fsdp_forward_method(model, "hidden")
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
    saving = dist.new_group(backend="gloo")
    return Ranks(dist.get_rank(), dist.get_world_size(), layout == "shard", saving)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor (sharing its memory); any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(part: Tensor, like: Tensor) -> Tensor:
    """The whole tensor of which `part` is this rank's share, laid out as `like` is. Collective if that is sharded."""
    if not isinstance(like, DTensor):
        return part
    spread = DTensor.from_local(part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
    return spread.full_tensor()


def share(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's share of a tensor that every rank holds whole, cut as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None).to_local()


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with every tensor whole, on every rank: what a model folder holds. Collective if sharded."""
    return {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        for name, tensor in model.state_dict().items()
    }


def sum_gradients(parameters: Iterable[Tensor], ranks: Ranks) -> None:
    """Sum replicas' gradients in place; FSDP2 has already summed its shards. The sum has the same bits on all ranks."""
    if ranks.count == 1 or ranks.sharded:
        return
    bucket: list[Tensor] = []
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)
            if sum(gradient.numel() for gradient in bucket) >= BUCKET_NUMBERS:
                _sum(bucket)
                bucket = []
    _sum(bucket)


def gradient_norm(parameters: Iterable[Tensor], ranks: Ranks = ALONE) -> Tensor:
    """The Euclidean norm over all gradients, over all shards too, as a scalar tensor."""
    gradients = (local(parameter.grad) for parameter in parameters if parameter.grad is not None)
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
    norm = torch.stack(norms).norm()
    if ranks.sharded:
        square = norm.double().square()
        dist.all_reduce(square)
        return square.sqrt().float()
    return norm


def _sum(bucket: list[Tensor]) -> None:
    if not bucket:
        return
    flat = torch.cat([gradient.flatten() for gradient in bucket])
    dist.all_reduce(flat)
    for gradient, summed in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
        gradient.copy_(summed.view_as(gradient))
