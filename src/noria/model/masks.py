"""Which earlier tokens a token may look at: causality, documents packed in a row, sliding windows.

B batch, T new tokens, S tokens that can be seen.
"""

from __future__ import annotations

import torch
from torch import Tensor


def document_mask(segment_BT: Tensor) -> Tensor:
    """(B, 1, T, T), True where query and key lie in the same document and the key is not later."""
    length = segment_BT.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment_BT.device).tril()
    return (segment_BT[:, None, :, None] == segment_BT[:, None, None, :]) & causal


def document_positions(segment_BT: Tensor) -> Tensor:
    """(B, T) distance of each token from the first token of its document; documents are contiguous in a row."""
    index = torch.arange(segment_BT.shape[1], device=segment_BT.device).expand_as(segment_BT)
    starts = torch.ones_like(segment_BT, dtype=torch.bool)
    starts[:, 1:] = segment_BT[:, 1:] != segment_BT[:, :-1]
    return index - torch.where(starts, index, 0).cummax(dim=1).values


def windowed(mask: Tensor | None, index_BT: Tensor, window: int) -> Tensor | None:
    """`mask` (B or 1, 1, T, S; None: causal over T) narrowed to the last `window` tokens, each query's own included.

    `index_BT` says where in 0..S-1 each query lies. A window that covers everything leaves the mask as it is.
    """
    seen = index_BT.shape[1] if mask is None else mask.shape[-1]
    if window >= seen:
        return mask
    distance_BTS = index_BT[..., None] - torch.arange(seen, device=index_BT.device)
    near = (distance_BTS < window)[:, None]
    return near & ((distance_BTS >= 0)[:, None] if mask is None else mask)
