"""Int8 weights on disk: a folder that load_model reads, smaller, and close to its source."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from noria.deployment.quantize import quantise_folder, quantise_state
from noria.model import load_model, read_config
from tests.tiny_model import write_tiny_model


def test_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match=r"w holds values that are not finite"):
        quantise_state({"w": torch.tensor([[float("nan")]])})


def test_quantised_folder_loads_is_smaller_and_close(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "exact")
    facts = quantise_folder(source, tmp_path / "int8")
    assert facts["bytes_after"] < 0.4 * facts["bytes_before"]
    assert facts["largest_relative_error"] < 0.02
    assert read_config(tmp_path / "int8")[1]["quantization"]["bits"] == 8
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        exact, loaded = (model(tokens) for model in (load_model(source), load_model(tmp_path / "int8")))
    assert (exact - loaded).norm() / exact.norm() < 0.1


def test_quantising_twice_gives_equal_bytes(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "exact")
    for name in ("a", "b"):
        quantise_folder(source, tmp_path / name)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
