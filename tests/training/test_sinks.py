"""Metrics sinks: opened only when named, and a clear word where the package is missing."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from noria.training.sinks import SINKS, SinkError, open_sinks


def test_no_sink_is_opened_unless_named(tmp_path):
    assert open_sinks([], "run", tmp_path) == []
    with pytest.raises(SinkError, match="no metrics sink 'mlflow'; choose from tensorboard, trackio, wandb"):
        open_sinks(["mlflow"], "run", tmp_path)


@pytest.mark.parametrize("name", sorted(SINKS))
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
    with pytest.raises(SinkError, match=rf"'{name}' is not installed; run: pip install 'noria\[{name}\]'"):
        open_sinks([name], "run", tmp_path)


def test_a_sink_gets_each_metric_of_a_step(tmp_path, monkeypatch):
    logged = []
    fake = ModuleType("wandb")
    fake.init = lambda **options: SimpleNamespace(log=lambda values, step: logged.append((step, values)))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    (sink,) = open_sinks(["wandb"], "run", tmp_path)
    sink(3, {"loss_ce": 1.5})
    assert logged == [(3, {"loss_ce": 1.5})]
