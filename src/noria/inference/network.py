"""The model as the engine runs it: a plain decoder by fused kernels, any other architecture by its own forward pass.

N tokens of any sequences, B rows of T tokens, D width, H query heads, G key/value heads, d head width, F hidden width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from noria.inference.batch import Batch
from noria.inference.cache import BLOCK, PagedCache
from noria.inference.native import HEAD_WIDTHS, NativeKernels, kernels
from noria.inference.panel_matrix import Bits, PanelMatrix
from noria.inference.weights import (
    TABLE_BITS,
    Matrix,
    PackedLinear,
    Precision,
    bits_of,
    compute_dtype,
    give_up,
    multiply,
    pack,
    prepared,
    return_memory,
    table_of,
)
from noria.model import Transformer
from noria.model.attention import Attention
from noria.model.feed_forward import activate
from noria.model.rope import rotary_angles
from noria.model.transformer import Block


class Network(Protocol):
    def hidden(self, batch: Batch, cache: PagedCache, every: bool = False) -> Tensor:
        """Final normalised states (B, D) of each row's last token, or (N, D) of `every` token; the states of all N
        tokens go to the cache."""
        ...

    def logits(self, hidden_BD: Tensor) -> Tensor:
        """(B, V) in fp32, summed in fp32."""
        ...

    @property
    def nbytes(self) -> int:
        """Of all weights that it holds, those shared with the model included."""
        ...


def network(model: Transformer, precision: Precision, consume: bool = False) -> Network:
    """`consume` empties the model's matrices as they are packed: the network is all that is left of them.

    Raises ValueError where a weight that is to be quantised is not finite.
    """
    native = kernels()
    built: Network
    if native is not None and is_plain(model):
        built = PlainDecoder(model, precision, native, consume)
    else:
        built = AnyTransformer(model, precision, consume)
    if consume:
        return_memory()
    return built


def is_plain(model: Transformer) -> bool:
    """Whether `PlainDecoder` computes this model: grouped heads, rotation, norms, windows, biases; nothing beyond."""
    config = model.config
    plain = (
        not (config.mla or config.moe or config.forget_gate or config.attention_gate or config.post_norm)
        and config.attention_residuals is None
        and config.attention_soft_cap is None
        and config.head_width in HEAD_WIDTHS
    )
    # A layer with an adapter is a module of another type.
    matrices = [module for module in model.modules() if hasattr(module, "weight") or hasattr(module, "base")]
    return plain and all(type(module) in (nn.Linear, nn.Embedding, nn.RMSNorm) for module in matrices)


class AnyTransformer:
    """`Transformer.hidden` on rows padded to one length, over a cache that is gathered."""

    def __init__(self, model: Transformer, precision: Precision, consume: bool) -> None:
        self._model, self._mixed = prepared(model, precision, consume), precision != "float32"

    def hidden(self, batch: Batch, cache: PagedCache, every: bool = False) -> Tensor:
        hidden_ND = torch.empty(len(batch.token_N), self._model.config.width)
        with torch.autocast("cpu", torch.bfloat16, enabled=self._mixed):
            for group in batch.groups:
                view = group.view(batch, cache)
                tokens_BT = batch.token_N[group.index_BT]
                found_BTD = self._model.hidden(tokens_BT, view.positions_BT, cache=view, mask=view.mask())
                hidden_ND[group.index_BT] = found_BTD.float()
        return hidden_ND if every else hidden_ND[batch.last_B]

    def logits(self, hidden_BD: Tensor) -> Tensor:
        return self._model.logits(hidden_BD)

    @property
    def nbytes(self) -> int:
        held: list[Matrix] = [*self._model.parameters(), *self._model.buffers()]
        for module in self._model.modules():
            packed = getattr(module, "packed", ())
            held += packed if isinstance(packed, tuple) else [packed]
            held += [kept for name in ("weight", "bias") if type(kept := module.__dict__.get(name)) is Tensor]
        return _bytes_of(held)


class PlainDecoder:
    """A layer is four products and four passes between them: norm, place in the cache, attend, gate.

    Numbers are as in training under autocast: the residual stream and the norms in fp32, products in `precision`.
    """

    def __init__(self, model: Transformer, precision: Precision, native: NativeKernels, consume: bool) -> None:
        self.config, self.dtype, self.native = model.config, compute_dtype(precision), native
        bits = bits_of(precision)
        self._layers: list[_Layer] = []
        for block in model.blocks:
            self._layers.append(_Layer(cast(Block, block), self.dtype, bits))
            if consume:
                give_up(block.parameters())
        self._final_norm = _fp32(model.final_norm.weight)
        self._head = PackedLinear(model.head, torch.float32, bits and TABLE_BITS)
        self._table = table_of(model, self._head.packed, bits, consume)
        if consume:
            give_up(model.parameters())
        self._scale = self.config.attention_scale or self.config.head_width**-0.5

    @property
    def nbytes(self) -> int:
        return _bytes_of(
            [self._table, self._head.packed, self._final_norm, *(m for la in self._layers for m in la.held)]
        )

    def hidden(self, batch: Batch, cache: PagedCache, every: bool = False) -> Tensor:
        config, native = self.config, self.native
        native.set_threads(torch.get_num_threads())
        count, heads, width = len(batch.token_N), config.heads, config.head_width
        table = self._table
        x_ND = table.rows(batch.token_N) if isinstance(table, PanelMatrix) else table[batch.token_N].float()
        if config.embedding_scale != 1.0:
            x_ND *= config.embedding_scale
        normed_ND = torch.empty(count, config.width, dtype=self.dtype)
        query_NHd = torch.empty(count, heads, width, dtype=self.dtype)
        mixed_NHd = torch.empty_like(query_NHd)
        rotary = self._rotary(batch.position_N)
        added_ND: Tensor | None = None
        for number, layer in enumerate(self._layers):
            key_SGd, value_SGd = cache.states_LSGd["key"][number], cache.states_LSGd["value"][number]
            is_local = config.is_local(number)
            native.add_norm(x_ND, added_ND, layer.attention_norm, normed_ND, config.norm_eps)
            native.place(
                multiply(normed_ND, layer.qkv, layer.qkv_bias),
                query_NHd,
                key_SGd,
                value_SGd,
                batch.slot_N,
                rotary[is_local] if config.is_rotated(number) else None,
                layer.qk_norms,
                config.norm_eps,
            )
            native.attend(
                query_NHd,
                key_SGd,
                value_SGd,
                mixed_NHd,
                batch.tables,
                batch.row_N,
                batch.position_N,
                BLOCK,
                config.local.window if config.local and is_local else 0,
                self._scale,
            )
            added_ND = multiply(mixed_NHd.view(count, -1), layer.output)
            native.add_norm(x_ND, added_ND, layer.ffn_norm, normed_ND, config.norm_eps)
            added_ND = multiply(self._feed_forward(multiply(normed_ND, layer.up)), layer.down)
        assert added_ND is not None
        last_BD = x_ND + added_ND if every else x_ND[batch.last_B] + added_ND[batch.last_B]
        final_BD = torch.empty_like(last_BD)
        native.add_norm(last_BD, None, self._final_norm, final_BD, config.norm_eps)
        return final_BD

    def logits(self, hidden_BD: Tensor) -> Tensor:
        logits = self._head(hidden_BD)
        cap = self.config.logit_soft_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _rotary(self, position_N: Tensor) -> dict[bool, tuple[Tensor, Tensor]]:
        """Cosine and sine (N, d/2) of global (False) and local (True) layers."""
        config = self.config

        def angles(base: float, scaled: bool) -> tuple[Tensor, Tensor]:
            cos, sin = rotary_angles(
                position_N[None], config.rotary_width, base, config.rope_scaling if scaled else None
            )
            return cos[0, 0].contiguous(), sin[0, 0].contiguous()

        whole = angles(config.rope_base, True)
        local = angles(config.local.rope_base, False) if config.local and config.local.rope_base else whole
        return {False: whole, True: local}

    def _feed_forward(self, gate_up: Tensor) -> Tensor:
        if not self.config.gated_ffn:
            return activate(self.config.activation, gate_up)
        if self.config.activation == "swiglu":
            out_NF = torch.empty(gate_up.shape[0], self.config.ffn_width, dtype=gate_up.dtype)
            self.native.swiglu(gate_up, out_NF)
            return out_NF
        gate, up = gate_up.chunk(2, -1)
        return activate(self.config.activation, up, gate).contiguous()


class _Layer:
    """One block's matrices, packed, those that share an input as one."""

    def __init__(self, block: Block, dtype: torch.dtype, bits: Bits | None) -> None:
        attention = block.attention
        assert isinstance(attention, Attention)
        self.attention_norm, self.ffn_norm = _fp32(block.attention_norm.weight), _fp32(block.ffn_norm.weight)
        three = (attention.query, attention.key, attention.value)
        self.qkv = pack(torch.cat(tuple(matrix.weight for matrix in three)), dtype, bits)
        biases = [matrix.bias for matrix in three]
        self.qkv_bias = None if biases[0] is None else torch.cat(tuple(biases)).detach().to(dtype)
        self.output = pack(attention.output.weight, dtype, bits)
        matrices = [block.up.weight] if block.gate is None else [block.gate.weight, block.up.weight]
        self.up = pack(torch.cat(tuple(matrices)), dtype, bits)
        self.down = pack(block.down.weight, dtype, bits)
        query_norm, key_norm = attention.query_norm, attention.key_norm
        self.qk_norms: tuple[Tensor, Tensor] | None = None
        if isinstance(query_norm, nn.RMSNorm) and isinstance(key_norm, nn.RMSNorm):
            self.qk_norms = (_fp32(query_norm.weight), _fp32(key_norm.weight))

    @property
    def held(self) -> list[Matrix]:
        kept = [self.qkv, self.output, self.up, self.down, self.attention_norm, self.ffn_norm, *(self.qk_norms or ())]
        return kept if self.qkv_bias is None else [*kept, self.qkv_bias]


def _bytes_of(held: Iterable[Matrix]) -> int:
    """Each once, however often it is named."""
    return sum(each.nbytes for each in {id(each): each for each in held}.values())


def _fp32(weight: Tensor) -> Tensor:
    return weight.detach().float().contiguous()
