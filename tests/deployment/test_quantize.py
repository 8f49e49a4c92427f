"""Int8 weights: bounded error, a folder that load_model reads, the same replies from both ways of running it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from noria.deployment.quantize import LEVELS, keep_int8, quantise_folder, quantise_rows, quantise_state
from noria.model import load_model, read_config
from tests.tiny_model import write_tiny_model


def test_error_is_at_most_half_a_step_of_each_row() -> None:
    weight = torch.randn(7, 33, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 4, 7)[:, None]
    quantised, scale = quantise_rows(weight)
    assert quantised.dtype == torch.int8 and quantised.abs().max() == LEVELS
    error = (weight - quantised.float() * scale[:, None]).abs()
    assert (error <= scale[:, None] * (0.5 + 1e-4)).all()


def test_a_row_of_zeros_stays_zero_and_signs_are_symmetric() -> None:
    weight = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    quantised, scale = quantise_rows(weight)
    assert quantised.tolist() == [[0, 0], [LEVELS, -LEVELS]] and torch.isfinite(scale).all()


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
        exact, loaded, kept = (
            model(tokens) for model in (load_model(source), load_model(tmp_path / "int8"), keep_int8(tmp_path / "int8"))
        )
    torch.testing.assert_close(loaded, kept, rtol=1e-3, atol=1e-3)
    assert (exact - loaded).norm() / exact.norm() < 0.1


def test_linear_layers_really_stay_int8(tmp_path: Path) -> None:
    quantise_folder(write_tiny_model(tmp_path / "exact"), tmp_path / "int8")
    model = keep_int8(tmp_path / "int8")
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items() if name.endswith("up.weight")}
    assert set(dtypes.values()) == {torch.int8}
    with pytest.raises(ValueError, match="no quantised model"):
        keep_int8(tmp_path / "exact")


def test_quantising_twice_gives_equal_bytes(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "exact")
    for name in ("a", "b"):
        quantise_folder(source, tmp_path / name)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
