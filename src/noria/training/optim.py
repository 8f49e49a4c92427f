"""Muon for the hidden matrices, AdamW for everything else, as one optimiser with one learning rate.

m rows, n columns of a weight matrix; C matrices of one shape, stepped together; E experts.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from noria.training.parallel import local, share, whole
from noria.training.rounding import in_blocks, write_rounded

# Newton-Schulz coefficients that push singular values into about [0.7, 1.2] in five iterations (Jordan 2024, Muon).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
# Parts of a parameter's name that keep it from Muon: embeddings and heads (a critic's too), adapters.
APART = {"embedding", "head", "lora_a", "lora_b"}


class MuonAdamW(torch.optim.Optimizer):
    """Muon with the one-rate scaling of Moonlight (arXiv 2502.16982): each orthogonalised update is multiplied by
    0.2*sqrt(max(m, n)), which gives it AdamW's typical root mean square, so that both parts share rate and decay.

    This is the one-rate variant: there is no other rate to tune. Experts, stored as one tensor (E, m, n), are
    orthogonalised each on its own. `products` is the dtype of Newton-Schulz: bf16 where the machine is fast at it (as
    its author runs it; updates differ by 3 to 4%), fp32 otherwise.

    Decay applies to hidden matrices only: norms, embedding and head are not pulled to zero. Without `muon`, AdamW steps
    the hidden matrices too, with their decay.

    Weights may be kept in bf16 (`bf16_weights.py`), and their moments are then too. An update is computed in fp32, and
    what does not fit into 8 bits is rounded up or down at random, in proportion: to the nearest, an update smaller than
    2^-9 of its weight would be lost, every time (arXiv 1502.02551, 2010.06192).
    """

    def __init__(
        self,
        model: nn.Module,
        learning_rate: float,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        muon: bool = True,
        products: torch.dtype = torch.float32,
    ) -> None:
        self._products = products
        hidden, other = partition(model)
        shared = {"lr": learning_rate, "momentum": momentum, "betas": betas}
        groups = ((hidden, "muon" if muon else "adamw", weight_decay), (other, "adamw", 0.0))
        super().__init__(
            [
                {"params": group, "kind": kind, "weight_decay": decay, **shared}
                for group, kind, decay in groups
                if group
            ],
            {},
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            (self._muon if group["kind"] == "muon" else self._adamw)(group, trained)

    def fill_state(self) -> None:
        """Moments (zero where there are none yet) for every parameter, so that a checkpoint can be read into them."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self._moments(parameter, group["kind"])

    def _moments(self, parameter: Tensor, kind: str) -> dict:
        state = self.state[parameter]
        if not state and kind == "muon":
            state.update(step=0, momentum=torch.zeros_like(parameter))
        elif not state:
            state.update(step=0, first=torch.zeros_like(parameter), second=torch.zeros_like(parameter))
        return state

    def _muon(self, group: dict, parameters: list[Tensor]) -> None:
        """Sharded or not, each matrix is orthogonalised whole: shards are gathered, and each rank keeps its rows.

        Every rank repeats the same orthogonalisation, which saves a second exchange. Newton-Schulz costs about 30 m
        FLOPs a weight and a step, training 6 a weight and a token: 5 m / tokens, 1% at m = 1,024 and 0.5M tokens.
        """
        by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in parameters:
            by_shape[parameter.shape].append(parameter)
        for shape, matrices in by_shape.items():
            updates = []
            for parameter in matrices:
                assert parameter.grad is not None
                state = self._moments(parameter, "muon")
                state["step"] += 1
                gradient, momentum = local(parameter.grad).float(), local(state["momentum"]).float()
                momentum.lerp_(gradient, 1.0 - group["momentum"])
                nesterov = torch.lerp(gradient, momentum, group["momentum"])
                updates.append(whole(nesterov, like=parameter))
                write_rounded(local(state["momentum"]), momentum, state["step"])
            scale = 0.2 * max(shape[-2:]) ** 0.5
            stacked = torch.stack(updates)
            turned = orthogonalise(stacked.flatten(0, -3), dtype=self._products).view_as(stacked)
            for parameter, update in zip(matrices, turned, strict=True):
                own = local(parameter)
                moved = own.float().mul_(1.0 - group["lr"] * group["weight_decay"])
                moved.add_(share(update, like=parameter), alpha=-group["lr"] * scale)
                write_rounded(own, moved, self.state[parameter]["step"])

    def _adamw(self, group: dict, parameters: list[Tensor]) -> None:
        """PyTorch's own, which passes over memory once."""
        settings = {name: group[name] for name in ("lr", "weight_decay")} | {"eps": 1e-8, "fused": True}
        settings |= {"beta1": group["betas"][0], "beta2": group["betas"][1], "amsgrad": False, "maximize": False}
        for parameter in parameters:
            assert parameter.grad is not None
            state = self._moments(parameter, "adamw")
            tensors = (local(parameter), local(parameter.grad), local(state["first"]), local(state["second"]))
            for block in zip(*map(in_blocks, tensors), strict=True):
                own, gradient, first, second = (part.float() for part in block)  # themselves, where they are in fp32
                step_before = torch.tensor(float(state["step"]), device=own.device)
                adamw([own], [gradient.contiguous()], [first], [second], [], [step_before], **settings)
                for place, value in ((block[0], own), (block[2], first), (block[3], second)):
                    write_rounded(place, value, state["step"])
            state["step"] += 1


def orthogonalise(matrices_Cmn: Tensor, iterations: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Approximately U V^T of each matrix's U S V^T, by Newton-Schulz iteration on the shorter side, in `dtype`."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices_Cmn.shape[1] > matrices_Cmn.shape[2]
    x = matrices_Cmn.mT if tall else matrices_Cmn
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = x.to(dtype)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.to(matrices_Cmn.dtype)
    return x.mT if tall else x


def partition(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """(hidden matrices, stacks of experts included; all others) of what is trained. Embeddings and heads are others
    (Muon's authors), and so are adapters: a low-rank factor is no map between hidden states."""
    hidden: list[Tensor] = []
    other: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_hidden = parameter.ndim in (2, 3) and not APART & set(name.split("."))
        (hidden if is_hidden else other).append(parameter)
    return hidden, other
