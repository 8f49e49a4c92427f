"""The loss from final states, with logits made and consumed a chunk of target tokens at a time.

All logits of a step would be N V numbers, more than the rest of a small model's memory: 2,048 targets and a vocabulary
of 49,152 make 0.4 GB in fp32, and the usual path holds them two to four times. Every term of the loss is a sum over
targets, so the gradient of a chunk's logits is known as soon as the chunk is, and nothing of it needs to be kept
(a term over whole sequences is none such: for it `chunked_logprobs` makes the logits twice):

    dL/dlogit_nv = dL/dlogprob_n ([v = target_n] - p_nv),   p = softmax(logits)

and likewise for the log-probabilities of a teacher's ids. Three products a chunk as in the plain path, no fourth to
recompute logits. (The idea is that of Liger's and of cut cross-entropy, arXiv 2410.10989 and 2411.09009.)

N targets, C of them in a chunk, V vocabulary, D width, K teacher draws a token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

# Of a chunk. Each adds V D numbers to the head's gradient, so small ones cost time, and large ones leave the cache:
# 1,024 was fastest or within 1% of it at vocabularies of 8,192 to 49,152. At most 128 MB of logits in bf16.
CHUNK_TARGETS, CHUNK_NUMBERS = 1024, 1 << 26
# Logits whose softmax is taken at once: 1 MB in fp32, so that the passes over them stay in a core's own cache.
BLOCK_NUMBERS = 1 << 18


@dataclass(frozen=True)
class Chosen:
    """Log-probabilities that the terms of a loss read: of the targets, and of the teacher's ids if there are any."""

    logprob_N: Tensor
    teacher_logprob_NK: Tensor | None = None


# From the log-probabilities of targets start..stop: the sum of each term over them.
Terms = Callable[[slice, Chosen], Mapping[str, Tensor]]


def chunked_sums(
    hidden_ND: Tensor,
    head_VD: Tensor,
    target_N: Tensor,
    teacher_ids_NK: Tensor | None,
    terms: Terms,
    counts: Mapping[str, float],
    soft_cap: float | None = None,
    chunk: int | None = None,
    compiled: bool = False,
    out_N: Tensor | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(the sum over terms of each one's sum over its count, ready for `backward`; each term's sum, without a gradient).

    `out_N`, where given, is filled with the targets' log-probabilities. Products are made in the dtype of `hidden_ND`,
    statistics and sums in fp32.
    """
    sums: dict[str, Tensor] = {}
    total = _ChunkedSums.apply(
        hidden_ND,
        head_VD,
        target_N,
        teacher_ids_NK,
        terms,
        counts,
        soft_cap,
        chunk or chunk_targets(len(head_VD)),
        sums,
        compiled,
        torch.is_grad_enabled(),
        out_N,
        temperature,
    )
    return total, sums


def chunked_logprobs(
    hidden_ND: Tensor,
    head_VD: Tensor,
    ids_NK: Tensor,
    soft_cap: float | None = None,
    chunk: int | None = None,
    compiled: bool = False,
    temperature: float = 1.0,
) -> Tensor:
    """(N, K) log-probabilities of `ids_NK`, differentiable: for terms that need a whole sequence before any of their
    slopes is known. The backward pass makes the logits a second time, a fourth product instead of kept logits."""
    chunk = chunk or chunk_targets(len(head_VD))
    return _ChunkedLogprobs.apply(hidden_ND, head_VD, ids_NK, soft_cap, chunk, compiled, temperature)


def chunk_targets(vocabulary: int) -> int:
    return max(1, min(CHUNK_TARGETS, CHUNK_NUMBERS // vocabulary))


class _ChunkedSums(torch.autograd.Function):
    """The gradient is made in the forward pass and kept, (N, D) and (V, D); `backward`, once, gives it away."""

    @staticmethod
    def forward(
        ctx,
        hidden_ND,
        head_VD,
        target_N,
        teacher_ids_NK,
        terms,
        counts,
        soft_cap,
        chunk,
        sums,
        compiled,
        wants_gradient,
        out_N,
        temperature,
    ):
        head = head_VD.to(hidden_ND.dtype)
        total = torch.zeros((), device=hidden_ND.device)
        grad_hidden_ND = torch.empty_like(hidden_ND) if wants_gradient else None
        wants_head = wants_gradient and ctx.needs_input_grad[1]  # a frozen head (LoRA) saves the third product
        new = torch.empty_like if len(hidden_ND) else torch.zeros_like  # the first chunk fills it
        grad_head_VD = new(head_VD, dtype=torch.float32) if wants_head else None
        # Written again for each chunk: memory that is new to the process is slow to touch.
        room_CV = hidden_ND.new_empty(min(chunk, len(hidden_ND)), len(head))
        product_VD = torch.empty_like(head) if wants_head else None
        for start in range(0, len(hidden_ND), chunk):
            part = slice(start, start + chunk)
            hidden_CD, ids_CK = hidden_ND[part], target_N[part, None]
            if teacher_ids_NK is not None:
                ids_CK = torch.cat([ids_CK, teacher_ids_NK[part]], 1)
            logits_CV = _logits(hidden_CD, head, room_CV, soft_cap, temperature)
            logprob_CK = chosen_logprobs(logits_CV, ids_CK, compiled)
            if out_N is not None:
                out_N[part] = logprob_CK[:, 0]
            leaf_CK = logprob_CK.detach().requires_grad_(wants_gradient)
            with torch.set_grad_enabled(wants_gradient):
                value = evaluate(terms, counts, part, leaf_CK, sums)
            total += value.detach()
            if grad_hidden_ND is not None:
                (slope_CK,) = torch.autograd.grad(value, leaf_CK)
                slope_CV = _slopes_at(temperature, logits_CV, ids_CK, logprob_CK, slope_CK, soft_cap, compiled)
                grad_hidden_ND[part] = slope_CV @ head
                if grad_head_VD is not None and product_VD is not None:
                    torch.mm(slope_CV.T, hidden_CD, out=product_VD)
                    if start == 0:
                        grad_head_VD.copy_(product_VD)
                    else:
                        grad_head_VD.add_(product_VD)
        ctx.gradients = grad_hidden_ND, None if grad_head_VD is None else grad_head_VD.to(head_VD.dtype)
        return total

    @staticmethod
    def backward(ctx, slope):
        given, ctx.gradients = ctx.gradients, None  # nobody else holds them, so that what comes is added in place
        if given is None:
            raise RuntimeError("this loss gave its gradient away in an earlier backward pass: compute it again")
        if slope != 1.0:
            given = [None if gradient is None else gradient.mul_(slope) for gradient in given]
        return *given, *(None,) * 11


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, head_VD, ids_NK, soft_cap, chunk, compiled, temperature):
        head = head_VD.to(hidden_ND.dtype)
        room_CV = hidden_ND.new_empty(min(chunk, len(hidden_ND)), len(head))
        logprob_NK = torch.empty(ids_NK.shape, device=hidden_ND.device)
        for start in range(0, len(hidden_ND), chunk):
            part = slice(start, start + chunk)
            logits_CV = _logits(hidden_ND[part], head, room_CV, soft_cap, temperature)
            logprob_NK[part] = chosen_logprobs(logits_CV, ids_NK[part], compiled)
        ctx.save_for_backward(hidden_ND, head_VD, ids_NK, logprob_NK)
        ctx.how = soft_cap, chunk, compiled, temperature
        return logprob_NK

    @staticmethod
    def backward(ctx, slope_NK):
        hidden_ND, head_VD, ids_NK, logprob_NK = ctx.saved_tensors
        soft_cap, chunk, compiled, temperature = ctx.how
        head = head_VD.to(hidden_ND.dtype)
        room_CV = hidden_ND.new_empty(min(chunk, len(hidden_ND)), len(head))
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_head_VD = torch.zeros_like(head) if ctx.needs_input_grad[1] else None
        for start in range(0, len(hidden_ND), chunk):
            part = slice(start, start + chunk)
            logits_CV = _logits(hidden_ND[part], head, room_CV, soft_cap, temperature)
            chosen = logits_CV, ids_NK[part], logprob_NK[part], slope_NK[part]
            slope_CV = _slopes_at(temperature, *chosen, soft_cap, compiled)
            grad_hidden_ND[part] = slope_CV @ head
            if grad_head_VD is not None:
                grad_head_VD.addmm_(slope_CV.T, hidden_ND[part])
        return grad_hidden_ND, None if grad_head_VD is None else grad_head_VD.to(head_VD.dtype), *(None,) * 5


def _logits(hidden_CD: Tensor, head_VD: Tensor, room_CV: Tensor, soft_cap: float | None, temperature: float) -> Tensor:
    logits_CV = torch.mm(hidden_CD, head_VD.T, out=room_CV[: len(hidden_CD)])
    if soft_cap is not None:
        logits_CV = soft_cap * torch.tanh(logits_CV / soft_cap)
    return logits_CV if temperature == 1.0 else logits_CV.div_(temperature)


def _slopes_at(
    temperature: float,
    logits_CV: Tensor,
    ids_CK: Tensor,
    logprob_CK: Tensor,
    slope_CK: Tensor,
    soft_cap: float | None,
    compiled: bool,
) -> Tensor:
    """`logit_slopes` of logits that were capped, then divided by `temperature`: dl/dlogit has a factor 1/temperature,
    and what was capped at c is now bounded by c/temperature."""
    if temperature != 1.0:
        slope_CK, soft_cap = slope_CK / temperature, None if soft_cap is None else soft_cap / temperature
    return logit_slopes(logits_CV, ids_CK, logprob_CK, slope_CK, soft_cap, compiled)


def evaluate(
    terms: Terms, counts: Mapping[str, float], part: slice, logprob_CK: Tensor, sums: dict[str, Tensor]
) -> Tensor:
    """The chunk's part of the loss; adds the terms' own sums to `sums`."""
    found = terms(part, Chosen(logprob_CK[:, 0], logprob_CK[:, 1:] if logprob_CK.shape[1] > 1 else None))
    for name, term in found.items():
        sums[name] = sums.get(name, 0.0) + term.detach()
    return torch.stack([term / counts[name] for name, term in found.items()]).sum()


def chosen_logprobs(logits_CV: Tensor, ids_CK: Tensor, compiled: bool = False) -> Tensor:
    """(C, K) log-probabilities of `ids_CK`, in fp32."""
    chosen_CK = logits_CV.gather(1, ids_CK).float()
    if compiled:
        return chosen_CK - _compiled(_logsum)(logits_CV)
    # The largest share is 1/sum exp(l - max), and softmax is the one kernel that makes it in a single pass.
    blocks = logits_CV.split(_block_rows(logits_CV))
    logsums = [block.amax(1).float() - block.softmax(1, dtype=torch.float32).amax(1).log() for block in blocks]
    return chosen_CK - torch.cat(logsums)[:, None]


def logit_slopes(
    logits_CV: Tensor,
    ids_CK: Tensor,
    logprob_CK: Tensor,
    slope_CK: Tensor,
    soft_cap: float | None,
    compiled: bool = False,
) -> Tensor:
    """dL/dlogits, written over the logits. Entries of the ids are rounded once, as differences: p may be near 1."""
    total_C1 = slope_CK.sum(1, keepdim=True)
    same_CKK = ids_CK[:, :, None] == ids_CK[:, None, :]  # an id may be drawn twice, and be the target too
    at_ids_CK = (same_CKK * slope_CK[:, None, :]).sum(2) - total_C1 * logprob_CK.exp()
    chosen_CK = logits_CV.gather(1, ids_CK).float()
    if soft_cap is not None:  # d capped / d logit = 1 - tanh^2
        at_ids_CK = at_ids_CK * (1.0 - (chosen_CK / soft_cap).square())
    if compiled:
        _compiled(_slopes)(logits_CV, (chosen_CK - logprob_CK)[:, :1], total_C1, soft_cap)
    else:
        rows = _block_rows(logits_CV)
        for block, factor in zip(logits_CV.split(rows), total_C1.split(rows), strict=True):
            slope = block.softmax(1, dtype=torch.float32).mul_(-factor)
            if soft_cap is not None:
                slope *= 1.0 - (block.float() / soft_cap).square()
            block.copy_(slope)
    logits_CV[torch.arange(len(ids_CK), device=ids_CK.device)[:, None], ids_CK] = at_ids_CK.to(logits_CV.dtype)
    return logits_CV


def _logsum(logits_CV: Tensor) -> Tensor:
    return logits_CV.float().logsumexp(1, keepdim=True)


def _slopes(logits_CV: Tensor, logsum_C1: Tensor, total_C1: Tensor, soft_cap: float | None) -> None:
    logits = logits_CV.float()
    slope = (logits - logsum_C1).exp() * -total_C1
    logits_CV.copy_(slope if soft_cap is None else slope * (1.0 - (logits / soft_cap).square()))


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


def _block_rows(logits_CV: Tensor) -> int:
    return max(1, BLOCK_NUMBERS // logits_CV.shape[1])
