"""Causal attention for compiled bf16 training on a CPU: products of whole blocks, one compiled pass between them.

The queries are those of the last T of S tokens: of a whole row (S = T), or of a reply after its prompt.

PyTorch's own CPU kernel (`scaled_dot_product_attention`) works on tiles that the bf16 units are wasted on: with its
backward pass it took twice as long (docs/results.md, pretraining speed). Here the unit is a block of queries, all heads
together; scores are made for keys up to the block's end only, stay in cache, and are made again in the backward pass
instead of being kept (FlashAttention, arXiv 2205.14135, sections 3.1 and B.2).

Scores are rounded to bf16 between the product and the softmax, which itself is in fp32.
B batch, H query heads, G key/value heads, r = H/G, d head width, Q queries of a block, E keys it may see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

# A block has so many queries (fewer skip more of what causality hides, more make larger products and fewer compiled
# shapes; 256 took 1.1 to 1.4 times as long at 256 and 1,024 tokens), and as many rows as keep its scores to about 1 MB.
BLOCK_QUERIES = 128
BLOCK_NUMBERS = 1 << 19


def is_faster(query_BHTd: Tensor, key_BGSd: Tensor, value_BGSd: Tensor) -> bool:
    """Whether a compiled bf16 training pass on a CPU is under way, with heads of one width."""
    return (
        query_BHTd.device.type == "cpu"
        and torch.compiler.is_compiling()
        and torch.is_autocast_enabled("cpu")
        and torch.is_grad_enabled()
        and query_BHTd.shape[2] <= key_BGSd.shape[2]
        and query_BHTd.shape[3] == key_BGSd.shape[3] == value_BGSd.shape[3]
    )


def blocked_attention(query_BHTd: Tensor, key_BGSd: Tensor, value_BGSd: Tensor, mask: Tensor, scale: float) -> Tensor:
    """softmax(scale q.k) v over what `mask` (B or 1, 1, T, S) allows, which must be causal; bf16 in and out."""
    parts = (part.to(torch.bfloat16).contiguous() for part in (query_BHTd, key_BGSd, value_BGSd))
    return _attend(*parts, mask, scale)[0]


@torch.library.custom_op("noria::blocked_attention", mutates_args=())
def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    mixed, logsum_BHT = torch.empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32)
    for rows, part, end in _blocks(query, key):
        score = torch.bmm(_fold(query[rows, :, part], key), key[rows, :, :end].flatten(0, 1).mT)
        score_BHQE = _by_head(score, query[rows, :, part])
        share, logsum = _compiled(_softmax)(score_BHQE, _seen(mask, rows, part, end), scale)
        values = value[rows, :, :end].flatten(0, 1)
        mixed[rows, :, part] = torch.bmm(share.view_as(score), values).view_as(mixed[rows, :, part])
        logsum_BHT[rows, :, part] = logsum
    return mixed, logsum_BHT


@torch.library.custom_op("noria::blocked_attention_backward", mutates_args=())
def _attend_backward(
    slope: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, mixed: Tensor, logsum: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """With P the shares and dO the slope: dV = P' dO, dP = dO V', dS = P (dP - rowsum(dO O)), dQ = dS K, dK = dS' Q."""
    grads = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
    for rows, part, end in _blocks(query, key):
        keys, values = key[rows, :, :end].flatten(0, 1), value[rows, :, :end].flatten(0, 1)
        queries, slopes = _fold(query[rows, :, part], key), _fold(slope[rows, :, part], key)
        score, share_slope = torch.bmm(queries, keys.mT), torch.bmm(slopes, values.mT)
        share, score_slope = _compiled(_softmax_backward)(
            _by_head(score, query[rows, :, part]),
            _by_head(share_slope, query[rows, :, part]),
            _seen(mask, rows, part, end),
            *(_own(whole[rows, :, part]) for whole in (logsum, slope, mixed)),
            scale,
        )
        share, score_slope = share.view_as(score), score_slope.view_as(score)
        grads[0][rows, :, part] = torch.bmm(score_slope, keys).view_as(query[rows, :, part])
        grads[1][rows, :, :end] += torch.bmm(score_slope.mT, queries).view_as(key[rows, :, :end])
        grads[2][rows, :, :end] += torch.bmm(share.mT, slopes).view_as(key[rows, :, :end])
    return grads


def _softmax(score_BHQE: Tensor, mask_B1QE: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    score_BHQE = torch.where(mask_B1QE, score_BHQE.float() * scale, -torch.inf)
    most = score_BHQE.amax(-1, keepdim=True)
    weight = (score_BHQE - most).exp()
    total = weight.sum(-1, keepdim=True)
    return (weight / total).to(torch.bfloat16), (most + total.log())[..., 0]


def _softmax_backward(
    score_BHQE: Tensor,
    share_slope_BHQE: Tensor,
    mask_B1QE: Tensor,
    logsum_BHQ: Tensor,
    slope_BHQd: Tensor,
    mixed_BHQd: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    mean_BHQ1 = (slope_BHQd.float() * mixed_BHQd.float()).sum(-1, keepdim=True)
    share_BHQE = torch.where(mask_B1QE, (score_BHQE.float() * scale - logsum_BHQ[..., None]).exp(), 0.0)
    score_slope_BHQE = share_BHQE * (share_slope_BHQE.float() - mean_BHQ1) * scale
    return share_BHQE.to(torch.bfloat16), score_slope_BHQE.to(torch.bfloat16)


def _blocks(query: Tensor, key: Tensor) -> Iterator[tuple[slice, slice, int]]:
    """(rows, queries, keys up to the last of them)."""
    rows, heads, length, _ = query.shape
    before = key.shape[2] - length
    for start in range(0, length, BLOCK_QUERIES):
        end = min(start + BLOCK_QUERIES, length)
        together = max(1, BLOCK_NUMBERS // (heads * (end - start) * (before + end)))
        for first in range(0, rows, together):
            yield slice(first, first + together), slice(start, end), before + end


def _seen(mask: Tensor, rows: slice, part: slice, end: int) -> Tensor:
    """(rows or 1, 1, Q, E)"""
    return _own(mask[rows if len(mask) > 1 else slice(1), :, part, :end])


def _own(part: Tensor) -> Tensor:
    """A copy: what is compiled then sees one layout, whatever the part was cut from, and is not compiled again."""
    return part.clone(memory_format=torch.contiguous_format)


def _fold(part_BHQd: Tensor, key: Tensor) -> Tensor:
    """(B G, r Q, d): the query heads that share a key head, one below the other, so that keys are not repeated."""
    return part_BHQd.reshape(part_BHQd.shape[0] * key.shape[1], -1, part_BHQd.shape[-1])


def _by_head(score: Tensor, part_BHQd: Tensor) -> Tensor:
    return score.view(*part_BHQd.shape[:3], score.shape[-1])


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


@_attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32)


@_attend_backward.register_fake
def _(
    slope: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, mixed: Tensor, logsum: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_attend_backward(slope.contiguous(), *ctx.saved_tensors, ctx.scale), None, None


_attend.register_autograd(_differentiate, setup_context=_keep)
