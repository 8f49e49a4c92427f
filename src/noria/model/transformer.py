"""A decoder-only transformer, put together from the pieces that its configuration names.

It knows nothing of parallelism or training. B batch, T time, S cached time, V vocabulary, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from noria.model.attention import Attention, LayerCache
from noria.model.config import ModelConfig
from noria.model.feed_forward import activate
from noria.model.latent_attention import LatentAttention
from noria.model.masks import Mask, SharedPrompts, document_mask, document_positions, windowed
from noria.model.moe import MixtureOfExperts
from noria.model.residual import Stream, residual
from noria.model.rope import rotary_angles

__all__ = ["Block", "Transformer", "document_mask", "document_positions"]

# What attention gets besides the states: cosine and sine, and the mask.
Surroundings = tuple[tuple[Tensor, Tensor], Mask | None]


class Transformer(nn.Module):
    """`hidden(tokens)` gives final states, `logits(hidden)` applies the head: a loss picks only the rows it needs."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.final_residual = residual(config, 2 * config.layers)
        self.final_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self._initialise(seed)
        if config.tied:
            self.head.weight = self.embedding.weight

    def _initialise(self, seed: int) -> None:
        """Uniform +-sqrt(3/fan_in), so that a product keeps unit variance; output projections start at zero, so that
        each block starts as the identity (modded-nanogpt); a small embedding keeps a tied head's logits near 0.

        Where a norm follows the output projection, the norm's weight starts at zero instead: the norm of a zero
        output would have a gradient of 1/sqrt(eps).
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith(("bias", "post_norm.weight")):
                nn.init.zeros_(parameter)
            elif parameter.ndim < 2:
                continue
            elif name.endswith(("output.weight", "down.weight", "moe.down")) and not self.config.post_norm:
                nn.init.zeros_(parameter)
            elif name.startswith(("embedding", "head")):
                nn.init.normal_(parameter, std=0.02, generator=generator)
            else:
                bound = math.sqrt(3.0 / parameter.shape[-1])
                nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def hidden(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        segment_BT: Tensor | None = None,
        cache: LayerCache | None = None,
        mask: Mask | None = None,
    ) -> Tensor:
        """Final normalised states (B, T, D).

        `segment_BT` numbers the documents packed in a row: attention stays inside each, and positions restart with it.
        With a `cache`, `mask` (B, 1, T, S) says what each new token sees, and its position is its place in the cache.
        Without one it may be `masks.SharedPrompts`, where the model has no windows and forgets nothing.
        """
        index_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)[None]
        if segment_BT is not None:
            mask, positions_BT = document_mask(segment_BT), document_positions(segment_BT)
        elif positions_BT is None:
            positions_BT = index_BT
        surroundings = self._surroundings(positions_BT, positions_BT if cache is not None else index_BT, mask)
        x_BTD = self.embedding(tokens_BT)
        if self.config.embedding_scale != 1.0:
            x_BTD = x_BTD * self.config.embedding_scale
        stream: Stream = (x_BTD,)
        for layer, block in enumerate(self.blocks):
            stream = block(stream, *surroundings[self.config.is_local(layer)], cache)
        return self.final_norm(self.final_residual.read(stream))

    def _surroundings(self, positions_BT: Tensor, index_BT: Tensor, mask: Mask | None) -> dict[bool, Surroundings]:
        """For global (False) and local (True) layers, whichever the model has."""
        config, local = self.config, self.config.local
        found: dict[bool, Surroundings] = {}
        rotary = rotary_angles(positions_BT, config.rotary_width, config.rope_base, config.rope_scaling)
        found[False] = (rotary, mask)
        if local is not None:
            assert not isinstance(mask, SharedPrompts)
            if local.rope_base is not None:
                rotary = rotary_angles(positions_BT, config.rotary_width, local.rope_base)
            found[True] = (rotary, windowed(mask, index_BT, local.window))
        return found

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V), in fp32."""
        logits = self.head(hidden).float()
        cap = self.config.logit_soft_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def forward(self, tokens_BT: Tensor, segment_BT: Tensor | None = None) -> Tensor:
        return self.logits(self.hidden(tokens_BT, segment_BT=segment_BT))


class Block(nn.Module):
    """Two sub-layers, attention and feed-forward, each reading from the stream and adding to it."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()

        def norm() -> nn.RMSNorm:
            return nn.RMSNorm(config.width, eps=config.norm_eps)

        self.activation = config.activation
        self.attention_residual = residual(config, 2 * layer)
        self.attention_norm = norm()
        self.attention = LatentAttention(config, layer) if config.mla else Attention(config, layer)
        self.attention_post_norm = norm() if config.post_norm else nn.Identity()
        self.ffn_residual = residual(config, 2 * layer + 1)
        self.ffn_norm = norm()
        self.moe = MixtureOfExperts(config) if config.has_experts(layer) else None
        if self.moe is None:
            self.gate = nn.Linear(config.width, config.ffn_width, bias=False) if config.gated_ffn else None
            self.up = nn.Linear(config.width, config.ffn_width, bias=False)
            self.down = nn.Linear(config.ffn_width, config.width, bias=False)
        self.ffn_post_norm = norm() if config.post_norm else nn.Identity()

    def forward(
        self, stream: Stream, rotary: tuple[Tensor, Tensor], mask: Mask | None, cache: LayerCache | None
    ) -> Stream:
        x_BTD = self.attention_norm(self.attention_residual.read(stream))
        added_BTD = self.attention_post_norm(self.attention(x_BTD, rotary, mask, cache))
        stream = self.attention_residual.write(stream, added_BTD)
        x_BTD = self.ffn_norm(self.ffn_residual.read(stream))
        added_BTD = self.ffn_post_norm(self._feed_forward(x_BTD) if self.moe is None else self.moe(x_BTD))
        return self.ffn_residual.write(stream, added_BTD)

    def _feed_forward(self, x_BTD: Tensor) -> Tensor:
        gate = None if self.gate is None else self.gate(x_BTD)
        return self.down(activate(self.activation, self.up(x_BTD), gate))
