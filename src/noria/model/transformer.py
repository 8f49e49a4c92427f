"""A decoder-only transformer: RMSNorm, RoPE, GQA, QK-norm, squared ReLU. It knows nothing of parallelism or training.

B batch, T time, S cached time, V vocabulary, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noria.model.attention import Attention, LayerCache, rotary_angles
from noria.model.config import ModelConfig


class Transformer(nn.Module):
    """`hidden(tokens)` gives final states, `logits(hidden)` applies the head: a loss picks only the rows it needs."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.final_norm = nn.RMSNorm(config.width, eps=1e-6)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self._initialise(seed)
        if config.tied:
            self.head.weight = self.embedding.weight

    def _initialise(self, seed: int) -> None:
        """Uniform +-sqrt(3/fan_in), so that a product keeps unit variance; output projections start at zero, so that
        each block starts as the identity (modded-nanogpt); a small embedding keeps a tied head's logits near 0."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                continue
            if name.endswith(("output.weight", "down.weight")):
                nn.init.zeros_(parameter)
            elif name.startswith(("embedding", "head")):
                nn.init.normal_(parameter, std=0.02, generator=generator)
            else:
                bound = math.sqrt(3.0 / parameter.shape[1])
                nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def hidden(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        segment_BT: Tensor | None = None,
        cache: LayerCache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Final normalised states (B, T, D).

        `segment_BT` numbers the documents packed in a row: attention stays inside each, and positions restart with it.
        With a `cache`, `mask` (B, 1, T, S) says what each new token sees.
        """
        if segment_BT is not None:
            mask, positions_BT = document_mask(segment_BT), document_positions(segment_BT)
        elif positions_BT is None:
            positions_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)[None]
        rotary = rotary_angles(positions_BT, self.config.head_width, self.config.rope_base)
        x_BTD = self.embedding(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, rotary, mask, cache)
        return self.final_norm(x_BTD)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V), in fp32."""
        return self.head(hidden).float()

    def forward(self, tokens_BT: Tensor, segment_BT: Tensor | None = None) -> Tensor:
        return self.logits(self.hidden(tokens_BT, segment_BT=segment_BT))


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=1e-6)
        self.attention = Attention(config, layer)
        self.ffn_norm = nn.RMSNorm(config.width, eps=1e-6)
        self.up = nn.Linear(config.width, config.ffn_width, bias=False)
        self.down = nn.Linear(config.ffn_width, config.width, bias=False)

    def forward(
        self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: LayerCache | None
    ) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotary, mask, cache)
        # Squared ReLU (Primer, arXiv 2109.08668): two matrices instead of SwiGLU's three at equal parameters.
        return x_BTD + self.down(F.relu(self.up(self.ffn_norm(x_BTD))).square())


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
