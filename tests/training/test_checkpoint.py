"""Checkpoints: refused when altered, never half there, readable in place, averaged, and kept by a rule."""

from __future__ import annotations

import errno
import shutil

import pytest
import torch
from test_loop import CONFIG, TINY, annotated, assert_bitwise, weights
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from noria.model import Transformer
from noria.training import Progress, train
from noria.training.checkpoint import (
    MANIFEST,
    PROGRESS,
    CheckpointError,
    Saver,
    average,
    complete,
    load_tensors,
    read_progress,
    retained,
    steps_of,
    verify,
)


def save(root, step, tensors, **plain):
    saver = Saver(root)
    saver.save(step, tensors, plain)
    saver.finish()
    return complete(root)[-1]


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path, 3, {"x": torch.arange(1000.0), "y": torch.ones(3)}, history=[{"loss": 0.1}])


def test_what_was_saved_is_read_back_into_the_tensors_that_are_there(folder):
    verify(folder)
    tensors = {"x": torch.zeros(1000), "y": torch.zeros(3)}
    where = tensors["x"].data_ptr()
    load_tensors(folder, tensors)
    assert torch.equal(tensors["x"], torch.arange(1000.0)) and tensors["x"].data_ptr() == where
    assert read_progress(folder) == {"history": [{"loss": 0.1}]} and steps_of(folder) == 3


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", PROGRESS, MANIFEST])
@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-2],  # of the manifest, the last byte is a mere line end
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"",
        lambda raw: raw[:-20] + bytes([raw[-20] ^ 1]) + raw[-19:],
        lambda raw: b"\xff\xfe\n" + raw,
        None,
    ],
)
def test_a_truncated_altered_or_missing_file_is_refused_by_name(folder, name, damage):
    path = folder / name
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"truncated or altered; remove the folder step-00000003 to start from"):
        verify(folder)


def test_a_damaged_checkpoint_names_the_one_before_and_leaves_it_usable(tmp_path):
    progress = Progress(tmp_path, checkpoint_steps=1)
    train(Transformer(TINY), annotated, CONFIG, progress)
    damaged = complete(tmp_path)[-1]
    path = next(damaged.glob("*.distcp"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="remove the folder step-00000008 to continue from step-00000007"):
        train(Transformer(TINY), annotated, CONFIG, progress)
    shutil.rmtree(damaged)
    resumed, whole = Transformer(TINY, seed=5), Transformer(TINY)
    assert train(resumed, annotated, CONFIG, progress) == train(whole, annotated, CONFIG)
    assert_bitwise(weights(resumed), weights(whole))


def test_a_disk_that_fills_in_the_middle_of_a_save_is_said_and_the_last_good_one_stays(folder, monkeypatch):
    def fill(self, plan, planner):
        (self.path / "__0_0.distcp").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FileSystemWriter, "write_data", fill)
    saver = Saver(folder.parent)
    saver.save(4, {"x": torch.ones(3)}, {})
    with pytest.raises(CheckpointError, match=r"disk of .* is full.*last good checkpoint, .*step-00000003, is intact"):
        saver.finish()
    assert complete(folder.parent) == [folder] and not list(folder.parent.glob("*.new"))
    verify(folder)


def test_a_half_written_checkpoint_does_not_count_and_is_cleared_up(folder):
    half = folder.parent / "step-00000004.new"
    shutil.copytree(folder, half)
    assert complete(folder.parent) == [folder]
    Saver(folder.parent)
    assert not half.exists()


def test_a_save_takes_the_values_of_its_moment(tmp_path):
    """The copy is made before `save` returns; what training does next is no part of it."""
    tensor, saver = torch.zeros(1 << 20), Saver(tmp_path)
    saver.save(1, {"x": tensor}, {})
    tensor.add_(1.0)
    saver.finish()
    found = {"x": torch.full((1 << 20,), 7.0)}
    load_tensors(complete(tmp_path)[0], found)
    assert not found["x"].any()


def test_a_checkpoint_of_another_run_is_refused_in_words(tmp_path):
    progress = Progress(tmp_path, checkpoint_steps=1)
    train(Transformer(TINY), annotated, CONFIG, progress)
    wider = Transformer(TINY.model_copy(update={"ffn_width": 48}))
    with pytest.raises(
        CheckpointError, match=r"(?s)of another run: .*down\.weight as \(16, 32\) in float32, .*\(16, 48\)"
    ):
        train(wider, annotated, CONFIG, progress)
    with pytest.raises(CheckpointError, match="of another run"):
        train(Transformer(TINY), annotated, CONFIG.model_copy(update={"muon": False}), progress)
    with pytest.raises(CheckpointError, match="at least 8 steps, and this one has 5"):
        train(Transformer(TINY), annotated, CONFIG.model_copy(update={"steps": 5}), progress)


def test_the_last_the_periodic_and_two_anchors_are_kept():
    assert retained(range(1, 31), keep_last=2, keep_every=0, anchor_every=0) == {29, 30}
    assert retained(range(1, 31), keep_last=1, keep_every=12, anchor_every=0) == {12, 24, 30}
    assert retained(range(1, 31), keep_last=1, keep_every=0, anchor_every=10) == {20, 30}
    assert retained([7], keep_last=0, keep_every=0, anchor_every=0) == {7}


def test_retention_removes_the_others(tmp_path):
    train(Transformer(TINY), annotated, CONFIG, Progress(tmp_path, checkpoint_steps=1, keep_last=2, keep_every=3))
    assert [steps_of(folder) for folder in complete(tmp_path)] == [3, 6, 7, 8]


def test_the_average_of_checkpoints_is_the_mean_of_their_weights(tmp_path):
    seen = []

    def watching(step):
        seen.append(weights(model))
        return annotated(step)

    model = Transformer(TINY)
    train(model, watching, CONFIG, Progress(tmp_path, checkpoint_steps=1, keep_last=3))
    mean = average(complete(tmp_path))
    late = [*seen[-2:], weights(model)]  # after 6, 7 and 8 steps
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, torch.stack([state[name] for state in late]).mean(0))
    with pytest.raises(ValueError, match="no checkpoints to average"):
        average([])
