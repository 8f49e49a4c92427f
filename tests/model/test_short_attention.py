"""Attention of short rows in a bf16 training pass: the same function as PyTorch's, by plain products."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from noria.model.attention import SHORT, _is_short, attend


@pytest.mark.parametrize("is_masked", [False, True])
def test_short_rows_attend_as_in_full_precision_and_so_do_their_gradients(is_masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, heads, 33, 16, generator=generator) for heads in (6, 2, 2)]
    segment_BT = torch.tensor([[0] * 20 + [1] * 13, [0] * 33])
    mask = (segment_BT[:, :, None] == segment_BT[:, None])[:, None] & torch.ones(33, 33, dtype=torch.bool).tril()
    given = mask if is_masked else None
    upstream = torch.randn(2, 6, 33, 16, generator=generator)

    exact = [part.clone().requires_grad_() for part in parts]
    wanted = F.scaled_dot_product_attention(*exact, attn_mask=given, is_causal=given is None, enable_gqa=True)
    wanted.backward(upstream)

    rounded = [part.bfloat16().requires_grad_() for part in parts]
    with torch.autocast("cpu", torch.bfloat16):
        assert _is_short(rounded[0], rounded[1])
        found = attend(*rounded, given)
    assert found.dtype == torch.bfloat16
    found.backward(upstream.bfloat16())
    torch.testing.assert_close(found.float(), wanted, atol=0.03, rtol=0.03)
    for mine, theirs in zip(rounded, exact, strict=True):
        assert mine.grad is not None and theirs.grad is not None
        torch.testing.assert_close(mine.grad.float(), theirs.grad, atol=0.06, rtol=0.06)


def test_long_rows_and_full_precision_keep_the_library_s_kernel() -> None:
    query = torch.zeros(1, 1, SHORT + 1, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert not _is_short(query, query)
    assert not _is_short(query[:, :, :8], query[:, :, :8])
