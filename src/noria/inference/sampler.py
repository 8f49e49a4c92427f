"""From logits to a token, with the log-probability under the distribution that was really sampled from.

B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from noria.inference.native import kernels


class SamplingParams(BaseModel):
    """How one request is sampled. Temperature 0 is greedy. Refuses values outside their range."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=1.0, ge=0.0, le=10.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0, description="0 keeps all tokens")
    seed: int = 0
    stop_ids: tuple[int, ...] = ()


def request_noise(params: SamplingParams, count: int) -> np.ndarray:
    """`count` uniform numbers in [0, 1), one for each token the request may sample; fewer are a prefix of more.

    Drawn from the request's own counter-based stream, so that what a request samples does not depend on its neighbours.
    """
    return np.random.Generator(np.random.Philox(key=params.seed & (2**64 - 1))).random(count)


def sample(logits_BV: Tensor, params: Sequence[SamplingParams], uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids (B,) and their log-probabilities (B,).

    Inverse-CDF sampling: the token at which the cumulative probability passes the row's uniform number. Greedy rows
    report the log-probability at temperature 1, of the whole vocabulary. No row depends on another.
    """
    temperature_B = torch.tensor([row.temperature for row in params], dtype=torch.float32)
    cut = [place for place, row in enumerate(params) if row.temperature > 0 and (row.top_k or row.top_p < 1.0)]
    if cut:
        logits_BV = logits_BV.clone()
        logits_BV[cut] = _truncate(_tempered(logits_BV[cut], temperature_B[cut]), [params[place] for place in cut])
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


def _truncate(logprobs_BV: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Keep the top k tokens and the smallest set whose mass reaches top_p, renormalised; the best one always stays."""
    vocabulary = logprobs_BV.shape[1]
    ordered_BV, order_BV = logprobs_BV.sort(dim=-1, descending=True, stable=True)
    top_k_B1 = torch.tensor([[row.top_k or vocabulary] for row in params])
    top_p_B1 = torch.tensor([[row.top_p] for row in params], dtype=logprobs_BV.dtype)
    mass_before_BV = ordered_BV.exp().cumsum(-1) - ordered_BV.exp()
    drop_BV = (torch.arange(vocabulary) >= top_k_B1) | ((mass_before_BV >= top_p_B1) & (top_p_B1 < 1.0))
    drop_BV[:, 0] = False
    kept_BV = torch.full_like(logprobs_BV, -torch.inf).scatter(1, order_BV, ordered_BV.masked_fill(drop_BV, -torch.inf))
    return kept_BV.log_softmax(-1)
