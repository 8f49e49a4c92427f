"""Log-probabilities of a prompt's own tokens, with the likeliest alternatives, for clients that ask for an echo."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from noria.model import Transformer

CHUNK = 256  # positions whose logits exist at one time; T x V of a long prompt would be gigabytes


@torch.inference_mode()
def prompt_logprobs(
    model: Transformer, token_ids: Sequence[int], top: int
) -> list[tuple[float, list[tuple[int, float]]]]:
    """(log-probability, [(token id, log-probability) of the `top` likeliest]) of every token but the first."""
    found: list[tuple[float, list[tuple[int, float]]]] = []
    if len(token_ids) < 2:
        return found
    tokens_1T = torch.tensor([list(token_ids)])
    hidden_TD = model.hidden(tokens_1T[:, :-1])[0]
    for start in range(0, len(hidden_TD), CHUNK):
        logprobs_CV = model.logits(hidden_TD[start : start + CHUNK]).float().log_softmax(-1)
        next_C1 = tokens_1T[0, start + 1 : start + 1 + len(logprobs_CV), None]
        best = logprobs_CV.topk(min(top, logprobs_CV.shape[1]), -1)
        rows = zip(
            *(logprobs_CV.gather(1, next_C1)[:, 0].tolist(), best.indices.tolist(), best.values.tolist()), strict=True
        )
        found += [(own, list(zip(ids, values, strict=True))) for own, ids, values in rows]
    return found
