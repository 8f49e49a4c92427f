"""The feed-forward sub-layer, as a function of its matrices."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from noria.model.config import Activation


def activate(kind: Activation, up: Tensor, gate: Tensor | None = None) -> Tensor:
    """The hidden state of the feed-forward from its products; the gated kinds (arXiv 2002.05202) need `gate` too."""
    if gate is None:
        # Squared ReLU (Primer, arXiv 2109.08668): two matrices instead of SwiGLU's three at equal parameters.
        return F.relu(up).square()
    if kind == "swiglu":
        return F.silu(gate) * up
    return F.gelu(gate, approximate="tanh") * up  # Gemma
