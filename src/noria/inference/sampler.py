"""From logits to a token, with the log-probability under the distribution that was really sampled from.

B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from noria.inference.native import kernels
from noria.inference.request import SamplingParams


def request_noise(params: SamplingParams, count: int) -> np.ndarray:
    """`count` uniform numbers in [0, 1), one for each token the request may sample; fewer are a prefix of more.

    Drawn from the request's own counter-based stream, so that what a request samples does not depend on its neighbours.
    """
    return np.random.Generator(np.random.Philox(key=params.seed & (2**64 - 1))).random(count)


def penalised(logits_V: Tensor, params: SamplingParams, prompt_ids: Sequence[int], reply_ids: Sequence[int]) -> Tensor:
    """A row of logits after its penalties and biases; the formulas of OpenAI's interface and, for repetition, of CTRL
    (arXiv 1909.05858, section 4.1) as commonly implemented."""
    logits_V = logits_V.clone()
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*prompt_ids, *reply_ids}))
        found = logits_V[seen]
        logits_V[seen] = torch.where(found > 0, found / params.repetition_penalty, found * params.repetition_penalty)
    if (params.presence_penalty or params.frequency_penalty) and reply_ids:
        sampled, count = torch.tensor(reply_ids).unique(return_counts=True)
        logits_V[sampled] -= params.presence_penalty + params.frequency_penalty * count
    if params.logit_bias:
        logits_V[torch.tensor(list(params.logit_bias))] += torch.tensor(list(params.logit_bias.values()))
    return logits_V


def distribution(logits_BV: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Log-probabilities (B, V) of what `sample` draws from: tempered and cut off; of a greedy row at temperature 1."""
    temperature_B = torch.tensor([row.temperature or 1.0 for row in params], dtype=torch.float32)
    logprobs_BV = _tempered(logits_BV, temperature_B)
    cut = [place for place, row in enumerate(params) if row.truncates]
    if cut:
        logprobs_BV[cut] = _truncate(logprobs_BV[cut], [params[place] for place in cut])
    return logprobs_BV


def sample(logits_BV: Tensor, params: Sequence[SamplingParams], uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids (B,) and their log-probabilities (B,).

    Inverse-CDF sampling: the token at which the cumulative probability passes the row's uniform number. Greedy rows
    report the log-probability at temperature 1, of the whole vocabulary. No row depends on another.
    """
    temperature_B = torch.tensor([row.temperature for row in params], dtype=torch.float32)
    cut = [place for place, row in enumerate(params) if row.truncates]
    if cut:
        logits_BV = logits_BV.clone()
        logits_BV[cut] = distribution(logits_BV[cut], [params[place] for place in cut])
        temperature_B[cut] = 1.0
    if (native := kernels()) is not None:
        return native.choose(logits_BV.contiguous(), temperature_B, uniform_B.double())
    greedy_B = temperature_B == 0
    shifted_BV = _shifted(logits_BV, torch.where(greedy_B, 1.0, temperature_B))
    sampled_B, log_total_B = _inverse_cdf(shifted_BV, uniform_B)
    token_B = torch.where(greedy_B, logits_BV.argmax(-1), sampled_B)
    return token_B, shifted_BV.gather(1, token_B[:, None])[:, 0] - log_total_B


def _shifted(logits_BV: Tensor, temperature_B: Tensor) -> Tensor:
    """Over the temperature, less the largest first: a temperature near 0 must not overflow."""
    return (logits_BV - logits_BV.amax(-1, keepdim=True)) / temperature_B[:, None]


def _tempered(logits_BV: Tensor, temperature_B: Tensor) -> Tensor:
    return _shifted(logits_BV, temperature_B).log_softmax(-1)


SPAN = 256  # tokens of a span: sums of spans are looked through first, then the one span


def _inverse_cdf(shifted_BV: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """The token at which the cumulative mass of exp(shifted) passes uniform * total, and log(total), both (B,).

    Sums over V in fp32 would lose the last tokens: sums of spans are added up in double.
    """
    rows, vocabulary = shifted_BV.shape
    mass_BV = shifted_BV.exp()
    mass_BNS = F.pad(mass_BV, (0, -vocabulary % SPAN)).view(rows, -1, SPAN)
    until_BN = mass_BNS.sum(-1).double().cumsum(-1)
    total_B1 = until_BN[:, -1:]
    # Keep below the total: a uniform number near 1 must not pass the last token.
    target_B1 = torch.minimum(uniform_B.double()[:, None] * total_B1, torch.nextafter(total_B1, -total_B1))
    span_B1 = torch.searchsorted(until_BN, target_B1, right=True).clamp_max(until_BN.shape[1] - 1)
    before_B1 = torch.where(span_B1 > 0, until_BN.gather(1, (span_B1 - 1).clamp_min(0)), 0.0)
    chosen_BS = mass_BNS[torch.arange(rows), span_B1[:, 0]].double()
    within_BS = chosen_BS.cumsum(-1)
    # A span's sum in fp32 and in double differ by rounding: stay on its tokens of some mass.
    last_B1 = (chosen_BS > 0).long().cumsum(-1).argmax(-1, keepdim=True)
    place_B1 = torch.searchsorted(within_BS, target_B1 - before_B1, right=True).minimum(last_B1)
    return (span_B1 * SPAN + place_B1)[:, 0], total_B1[:, 0].log().to(shifted_BV.dtype)


CANDIDATES = 1024  # likeliest tokens among which a cut is looked for, before the whole row is sorted


def _truncate(logprobs_BV: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Keep the top k tokens, the smallest set whose mass reaches top_p, and what has min_p of the best one's share;
    renormalised. The best one always stays."""
    vocabulary = logprobs_BV.shape[1]
    kept_BV = torch.full_like(logprobs_BV, -torch.inf)
    rows = torch.arange(len(params))
    # Few candidates do for most rows; how wide a row's search is depends on no other row, as ties are ordered by it.
    for width in (min(CANDIDATES, vocabulary), vocabulary):
        ordered_BW, order_BW = logprobs_BV[rows].topk(width, -1)
        drop_BW = _dropped(ordered_BW.exp(), [params[row] for row in rows.tolist()])
        # Where the last candidate is dropped, all that come after it would be too.
        done_B = drop_BW[:, -1] | (width == vocabulary)
        kept_BW = ordered_BW.masked_fill(drop_BW, -torch.inf)
        kept_BV[rows[done_B]] = kept_BV[rows[done_B]].scatter(1, order_BW[done_B], kept_BW[done_B])
        rows = rows[~done_B]
        if not len(rows):
            break
    return kept_BV.log_softmax(-1)


def _dropped(share_BW: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Which of the likeliest tokens, in their order, a row cuts off."""
    most = torch.tensor([[row.top_k or 2**31] for row in params])
    top_p_B1 = torch.tensor([[row.top_p] for row in params], dtype=share_BW.dtype)
    min_p_B1 = torch.tensor([[row.min_p] for row in params], dtype=share_BW.dtype)
    mass_before_BW = share_BW.cumsum(-1) - share_BW
    drop_BW = (torch.arange(share_BW.shape[1]) >= most) | (share_BW < min_p_B1 * share_BW[:, :1])
    drop_BW |= (mass_before_BW >= top_p_B1) & (top_p_B1 < 1.0)
    drop_BW[:, 0] = False
    return drop_BW
