"""Multi-head latent attention: keys and values are made from one small latent, and only that is cached.

B batch, T new tokens, S cached tokens, D width, H heads, R latent width, n and r a head's widths without and with
position, v its value's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from noria.model.attention import LayerCache, attend, decay_bias, gated, log_forget, output_gate
from noria.model.config import ModelConfig
from noria.model.masks import Mask
from noria.model.rope import rotate


class LatentAttention(nn.Module):
    """DeepSeek-V2, arXiv 2405.04434, eq. 9-19 (V3 the same): position lives in a separate rotated part of the query and
    in one rotated key that all heads share, so that the rest of the key stays a linear map of the latent."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        assert config.mla is not None
        self.layer, self.mla, self.heads, self.soft_cap = layer, config.mla, config.heads, config.attention_soft_cap
        self.scale = config.attention_scale or config.head_width**-0.5
        source = config.mla.query_rank or config.width
        if config.mla.query_rank:
            self.query_latent = nn.Linear(config.width, source, bias=False)
            self.query_norm = nn.RMSNorm(source, eps=config.norm_eps)
        self.query = nn.Linear(source, config.heads * config.head_width, bias=False)
        self.kv_latent = nn.Linear(config.width, config.mla.kv_rank + config.mla.rope_width, bias=False)
        self.kv_norm = nn.RMSNorm(config.mla.kv_rank, eps=config.norm_eps)
        self.kv = nn.Linear(
            config.mla.kv_rank, config.heads * (config.mla.nope_width + config.mla.value_width), bias=False
        )
        self.output = nn.Linear(config.heads * config.mla.value_width, config.width, bias=False)
        self.gate = output_gate(config)
        self.forget = nn.Linear(config.width, config.heads) if config.forget_gate else None

    def forward(
        self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor], mask: Mask | None, cache: LayerCache | None
    ) -> Tensor:
        """As `Attention.forward`."""
        rows, length, _ = x_BTD.shape
        latent_BTq = self.query_norm(self.query_latent(x_BTD)) if self.mla.query_rank else x_BTD
        query_BHTd = self.query(latent_BTq).view(rows, length, self.heads, -1).transpose(1, 2)
        query_BHTn, query_BHTr = query_BHTd.split([self.mla.nope_width, self.mla.rope_width], -1)
        latent_BTR, key_BTr = self.kv_latent(x_BTD).split([self.mla.kv_rank, self.mla.rope_width], -1)
        states = {
            "latent": self.kv_norm(latent_BTR)[:, None],
            "rope_key": rotate(key_BTr[:, None], *rotary),
        }
        if self.forget is not None:
            states["log_forget"] = log_forget(self.forget(x_BTD))
        if cache is not None:
            states = cache.extend(self.layer, states)
        decay = decay_bias(states["log_forget"], cache) if self.forget is not None else None
        one_by_one = cache is not None and length == 1
        mix = self._attend_latents if one_by_one else self._attend_heads
        mixed_BHTv = mix(
            query_BHTn, rotate(query_BHTr, *rotary), states["latent"], states["rope_key"], mask=mask, decay=decay
        )
        if self.gate is not None:
            mixed_BHTv = gated(mixed_BHTv, self.gate(x_BTD))
        return self.output(mixed_BHTv.transpose(1, 2).reshape(rows, length, -1))

    def _attend_heads(
        self,
        query_BHTn: Tensor,
        query_BHTr: Tensor,
        latent_B1SR: Tensor,
        key_B1Sr: Tensor,
        mask: Mask | None,
        decay: Tensor | None,
    ) -> Tensor:
        """Every head's keys and values are made from the latents, then attention as usual."""
        rows, _, seen, _ = latent_B1SR.shape
        kv_BHSe = self.kv(latent_B1SR[:, 0]).view(rows, seen, self.heads, -1).transpose(1, 2)
        key_BHSn, value_BHSv = kv_BHSe.split([self.mla.nope_width, self.mla.value_width], -1)
        query_BHTd = torch.cat((query_BHTn, query_BHTr), -1)
        key_BHSd = torch.cat((key_BHSn, key_B1Sr.expand(-1, self.heads, -1, -1)), -1)
        return attend(query_BHTd, key_BHSd, value_BHSv, mask, self.scale, self.soft_cap, decay)

    def _attend_latents(
        self,
        query_BHTn: Tensor,
        query_BHTr: Tensor,
        latent_B1SR: Tensor,
        key_B1Sr: Tensor,
        mask: Mask | None,
        decay: Tensor | None,
    ) -> Tensor:
        """The same without making them: q.(W_k c) = (W_k^T q).c and sum a (W_v c) = W_v (sum a c) (section 2.1.2).

        For one new token this costs H*(n+v)*R products once instead of once a cached token.
        """
        kv_HeR = self.kv.weight.view(self.heads, -1, self.mla.kv_rank)
        key_HnR, value_HvR = kv_HeR.split([self.mla.nope_width, self.mla.value_width], 1)
        query_BHTc = torch.cat((query_BHTn @ key_HnR, query_BHTr), -1)
        key_B1Sc = torch.cat((latent_B1SR, key_B1Sr), -1)
        mixed_BHTR = attend(query_BHTc, key_B1Sc, latent_B1SR, mask, self.scale, self.soft_cap, decay)
        return mixed_BHTR @ value_HvR.mT
