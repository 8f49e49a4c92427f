"""A random model of a few thousand parameters in a folder, for tests that need something that answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from noria.data.tokenizer import train_tokenizer
from noria.model import ModelConfig, Transformer, save_model

TEXT = (
    "the quick brown fox jumps over the lazy dog and says hello to you, mail a@b.example <img src=x onerror=alert(1)> "
)


def write_tiny_model(folder: Path, context: int = 128, seed: int = 0, **shape: Any) -> Path:
    """Writes a model artifact's content. Weights are scaled up so that replies vary with the prompt."""
    tokenizer = train_tokenizer([TEXT] * 20, 320)
    sizes = {"width": 32, "layers": 2, "heads": 2, "kv_heads": 1, "ffn_width": 64, "context": context}
    config = ModelConfig(vocab_size=tokenizer.vocab_size, **sizes, **shape)
    model = Transformer(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder / "tokenizer-source.json")
    save_model(folder, model, folder / "tokenizer-source.json")
    (folder / "tokenizer-source.json").unlink()
    return folder
