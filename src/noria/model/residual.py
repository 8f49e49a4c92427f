"""How a sub-layer reads what the layers below it wrote, and adds to it: the plain sum, or Attention Residuals.

B batch, T time, N entries of the stream, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from noria.model.config import ModelConfig

# The embedding and the sums of the blocks of sub-layers so far, each (B, T, D); a plain sum is a single entry.
Stream = tuple[Tensor, ...]


class PlainResidual(nn.Module):
    def read(self, stream: Stream) -> Tensor:
        return stream[-1]

    def write(self, stream: Stream, added_BTD: Tensor) -> Stream:
        return (*stream[:-1], stream[-1] + added_BTD)


class AttentionResidual(nn.Module):
    """Attention Residuals (arXiv 2603.15031): the input is a softmax over earlier outputs instead of their sum.

        h = sum_i a_i v_i,   a = softmax_i(w . RMSNorm(v_i)),   w learned, one a sub-layer, zero at first

    Full: v_0 is the embedding and v_i the output of sub-layer i. Block: v_0 is the embedding and the others are sums of
    the sub-layers of a block, the running one's so far included. The published code gives the norm a weight; it only
    multiplies w, so here it is part of w.
    """

    def __init__(self, width: int, eps: float, opens_block: bool) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(width))
        self.eps, self.opens_block = eps, opens_block

    def read(self, stream: Stream) -> Tensor:
        value_BTND = torch.stack(stream, 2)
        inverse_rms_BTN1 = (value_BTND.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        share_BTN1 = (value_BTND @ self.query[:, None] * inverse_rms_BTN1).softmax(2)
        return (share_BTN1.mT @ value_BTND).squeeze(2)

    def write(self, stream: Stream, added_BTD: Tensor) -> Stream:
        return (*stream, added_BTD) if self.opens_block else (*stream[:-1], stream[-1] + added_BTD)


def residual(config: ModelConfig, sub_layer: int) -> PlainResidual | AttentionResidual:
    """That of sub-layer 0.. (attention and feed-forward count one each); one more stands before the final norm."""
    if config.attention_residuals is None:
        return PlainResidual()
    return AttentionResidual(config.width, config.norm_eps, sub_layer % config.attention_residuals == 0)
