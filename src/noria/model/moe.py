"""Mixture of experts: a router sends each token to a few of many feed-forwards; all tokens are computed, none dropped.

N tokens, M = N K visits, D width, E experts, K chosen a token, F hidden width of an expert.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noria.model.config import ModelConfig, MoE
from noria.model.feed_forward import activate


class MixtureOfExperts(nn.Module):
    """DeepSeekMoE (arXiv 2401.06066) with bias-balanced routing (arXiv 2408.15664; DeepSeek-V3, arXiv 2412.19437).

    `bias` only chooses, never weighs; `balance_experts` moves it after an optimiser step, by `load`, the visits that
    each expert had in the backward passes since.
    """

    bias: Tensor
    load: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.moe is not None
        self.config, self.activation = config.moe, config.activation
        experts, width, hidden = config.moe.experts, config.width, config.moe.expert_width
        self.router = nn.Linear(width, experts, bias=False)
        self.gate = nn.Parameter(torch.empty(experts, hidden, width)) if config.gated_ffn else None
        self.up = nn.Parameter(torch.empty(experts, hidden, width))
        self.down = nn.Parameter(torch.empty(experts, width, hidden))
        if config.moe.shared:
            shared = config.moe.shared * hidden
            self.shared_gate = nn.Linear(width, shared, bias=False) if config.gated_ffn else None
            self.shared_up = nn.Linear(width, shared, bias=False)
            self.shared_down = nn.Linear(shared, width, bias=False)
        self.register_buffer("bias", torch.zeros(experts))
        self.register_buffer("load", torch.zeros(experts), persistent=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        # The router computes in fp32: rounding would change which experts are chosen.
        with torch.autocast(x_ND.device.type, enabled=False):
            logits_NE = F.linear(x_ND.float(), self.router.weight.float())
        chosen_NK, weight_NK = route(logits_NE, self.bias, self.config)
        load_E = torch.bincount(chosen_NK.flatten(), minlength=self.config.experts)
        order_M = chosen_NK.flatten().argsort(stable=True)  # visits, expert by expert
        visiting_MD = x_ND[order_M // self.config.chosen]
        gate_MF = None if self.gate is None else by_expert(visiting_MD, self.gate, load_E)
        hidden_MF = activate(self.activation, by_expert(visiting_MD, self.up, load_E), gate_MF)
        result_MD = by_expert(hidden_MF, self.down, load_E)
        result_NKD = result_MD[order_M.argsort()].view(*chosen_NK.shape, -1)
        y_ND = (result_NKD * weight_NK[..., None].to(result_NKD.dtype)).sum(1)
        if self.config.shared:
            gate = None if self.shared_gate is None else self.shared_gate(x_ND)
            y_ND = y_ND + self.shared_down(activate(self.activation, self.shared_up(x_ND), gate))
        if self.training:
            y_ND = CountVisits.apply(y_ND, load_E, self.load)
        return y_ND.view(x_BTD.shape)


def route(logits_NE: Tensor, bias_E: Tensor, config: MoE) -> tuple[Tensor, Tensor]:
    """(experts chosen, their weights), both (N, K): chosen by score + bias, weighted by score (V3, eq. 12-16)."""
    score_NE = logits_NE.sigmoid() if config.score == "sigmoid" else logits_NE.softmax(-1)
    chosen_NK = (score_NE + bias_E).topk(config.chosen, dim=-1).indices
    weight_NK = score_NE.gather(1, chosen_NK)
    if config.normalise:
        weight_NK = weight_NK / weight_NK.sum(-1, keepdim=True)
    return chosen_NK, weight_NK * config.route_scale


def by_expert(x_MI: Tensor, weight_EOI: Tensor | nn.Module, load_E: Tensor) -> Tensor:
    """Each visit times its expert's matrix; visits are sorted by expert, `load_E` of them each.

    Matrices kept in a form of their own (a module in the place of the stack) multiply by themselves.
    One grouped product where `torch._grouped_mm` can be used: in bf16 (given, or under autocast), with both widths a
    multiple of 8 (it wants strides of 16 bytes). Otherwise, fp32 above all, a product an expert.
    """
    if isinstance(weight_EOI, nn.Module):
        return cast(Tensor, weight_EOI(x_MI, load_E))
    device = x_MI.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_EOI.dtype
    if dtype == torch.bfloat16 and x_MI.shape[1] % 8 == 0 and weight_EOI.shape[1] % 8 == 0:
        ends_E = load_E.cumsum(0).to(torch.int32)
        return torch._grouped_mm(x_MI.to(dtype), weight_EOI.to(dtype).mT, offs=ends_E)
    parts = x_MI.split(load_E.tolist())
    return torch.cat([F.linear(part.to(dtype), weight) for part, weight in zip(parts, weight_EOI, strict=True)])


class CountVisits(torch.autograd.Function):
    """Passes its input through; the backward pass adds the loads to the total.

    Counting backward and not forward, a micro-batch counts once also where activation checkpointing runs its forward
    pass twice, and a pass without a gradient (an evaluation) not at all.
    """

    @staticmethod
    def forward(ctx, y_ND: Tensor, load_E: Tensor, total_E: Tensor) -> Tensor:
        ctx.load_E, ctx.total_E = load_E, total_E
        return y_ND.view_as(y_ND)

    @staticmethod
    def backward(ctx, gradient_ND: Tensor) -> tuple[Tensor, None, None]:
        ctx.total_E.add_(ctx.load_E)
        return gradient_ND, None, None


@torch.no_grad()
def balance_experts(
    model: nn.Module, rate: float = 0.001, reduce: Callable[[Tensor], object] | None = None
) -> list[float]:
    """Call after each optimiser step: bias += rate * sign(mean load - load), recentred; then the count starts anew.

    `reduce` adds a tensor up over data-parallel ranks in place (`torch.distributed.all_reduce`). Returns, for each MoE
    layer, how far the busiest expert lay above the mean load (0.2: 20%). The rate is DeepSeek-V3's (section 4.2; 0 for
    the last tokens). Recentring keeps the biases from drifting together, which would change nothing but their rounding.
    """
    excess = []
    for layer in model.modules():
        if not isinstance(layer, MixtureOfExperts):
            continue
        if reduce is not None:
            reduce(layer.load)
        mean = layer.load.mean()
        if mean > 0:
            layer.bias += rate * torch.sign(mean - layer.load)
            layer.bias -= layer.bias.mean()
            excess.append(float(layer.load.max() / mean) - 1.0)
        layer.load.zero_()
    return excess
