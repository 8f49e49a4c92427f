"""Which earlier tokens a token may look at: causality, documents packed in a row, sliding windows, shared prompts.

B batch, T new tokens, S tokens that can be seen, H heads, d a head's width. Of shared prompts: G rows, E replies in
all, P tokens of the longest prompt, R of the longest reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

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


@dataclass(frozen=True)
class SharedPrompts:
    """G rows of T tokens, each a prompt and after it replies, which see the prompt and themselves.

    `prompt_GP` and `reply_ER` say where in the G T tokens theirs are (beyond a part's end, anywhere), `row_E` whose
    prompt a reply has, `seen_E1RS` what its tokens see of the P + R, and `place_N` where in the G P + E R each of the
    G T tokens is.
    """

    prompt_GP: Tensor
    reply_ER: Tensor
    row_E: Tensor
    seen_E1RS: Tensor
    place_N: Tensor

    @classmethod
    def of_spans(
        cls,
        prompts: Sequence[range],
        replies: Sequence[range],
        row_of: Sequence[int],
        places: int,
        device: torch.device | None = None,
    ) -> SharedPrompts:
        """From where in the G T = `places` tokens each prompt and each reply lies, and whose prompt a reply has."""
        prompt_GP, reply_ER, row_E = _padded(prompts), _padded(replies), torch.tensor(row_of)
        length_E = torch.tensor([len(prompts[row]) for row in row_of])
        of_prompt_E1P = torch.arange(prompt_GP.shape[1]) < length_E[:, None, None]
        own_RR = torch.ones(reply_ER.shape[1], reply_ER.shape[1], dtype=torch.bool).tril()
        seen_ERS = torch.cat([of_prompt_E1P.expand(-1, len(own_RR), -1), own_RR.expand(len(replies), -1, -1)], 2)
        place_N = torch.zeros(places, dtype=torch.long)  # of padding: any
        first = 0
        for spans, index in ((prompts, prompt_GP), (replies, reply_ER)):
            for span in spans:
                place_N[span.start : span.stop] = first + torch.arange(len(span))
                first += index.shape[1]
        return cls(*(part.to(device) for part in (prompt_GP, reply_ER, row_E, seen_ERS[:, None], place_N)))

    @property
    def pairs(self) -> int:
        """Of tokens, that attention computes by part: half of the prompts' squares, all that `seen_E1RS` holds."""
        return self.prompt_GP.numel() * self.prompt_GP.shape[1] // 2 + self.seen_E1RS.numel()

    @cached_property
    def added_E1RS(self) -> Tensor:
        """`seen_E1RS` as what is added to scores, made once: of a Boolean one a pass keeps a copy like this a layer."""
        return torch.zeros(self.seen_E1RS.shape, device=self.seen_E1RS.device).masked_fill(~self.seen_E1RS, -torch.inf)

    def prompts(self, states_GHTd: Tensor) -> Tensor:
        """(G, H, P, d)"""
        return _picked(states_GHTd, self.prompt_GP)

    def replies(self, states_GHTd: Tensor) -> Tensor:
        """(E, H, R, d)"""
        return _picked(states_GHTd, self.reply_ER)

    def after_prompts(self, prompts_GHPd: Tensor, replies_EHRd: Tensor) -> Tensor:
        """(E, H, P + R, d): of each reply its prompt's states and its own."""
        return torch.cat([prompts_GHPd.index_select(0, self.row_E), replies_EHRd], 2)

    def joined(self, prompts_GHPd: Tensor, replies_EHRd: Tensor) -> Tensor:
        """(G, H, T, d): `prompts` and `replies` undone."""
        by_token = torch.cat([_by_token(prompts_GHPd), _by_token(replies_EHRd)])
        rows, heads, _, width = prompts_GHPd.shape
        return by_token.index_select(0, self.place_N).view(rows, -1, heads, width).transpose(1, 2)


Mask = Tensor | SharedPrompts


def _padded(spans: Sequence[range]) -> Tensor:
    """(spans, tokens of the longest), the last place of each repeated up to there."""
    longest = max(map(len, spans))
    return torch.tensor([[*span, *[span[-1]] * (longest - len(span))] for span in spans])


def _picked(states_GHTd: Tensor, index_EP: Tensor) -> Tensor:
    heads, width = states_GHTd.shape[1], states_GHTd.shape[3]
    chosen = _by_token(states_GHTd).index_select(0, index_EP.flatten())
    return chosen.view(*index_EP.shape, heads, width).transpose(1, 2)


def _by_token(states_GHTd: Tensor) -> Tensor:
    return states_GHTd.transpose(1, 2).flatten(0, 1).flatten(1)
