from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from noria.data.shards import BLOCK, ShardSet, TokenStream, apportion, heldout_rows, normalised, permute, write_shards


def make(folder, lengths, first=0):
    """Documents whose tokens count up from `first`, so that a token tells where it came from."""
    ends = np.cumsum(lengths)
    flat = (np.arange(ends[-1]) + first).astype(np.uint16)
    table = pa.table({"id": [f"d{i}" for i in range(len(lengths))]})
    return write_shards(folder, table, np.split(flat, ends[:-1]), "tok")


@pytest.fixture
def shards(tmp_path):
    make(tmp_path / "big" / "train", [300, 200, 500, 234])
    make(tmp_path / "small" / "train", [5, 3], first=10_000)
    make(tmp_path / "big" / "heldout", [40, 35])
    make(tmp_path / "small" / "heldout", [4], first=10_000)
    facts = {"big": {"heldout_tokens": 75, "heldout_bytes": 300}, "small": {"heldout_tokens": 4, "heldout_bytes": 8}}
    (tmp_path / "shards.json").write_text(json.dumps({"sources": facts}))
    return tmp_path


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000, 4096])
def test_permutation_is_bijective(size):
    order = permute(np.arange(size), size, key=5)
    assert sorted(order) == list(range(size))
    if size > 60:
        assert list(order) != list(range(size))
        assert list(order) != list(permute(np.arange(size), size, key=6))


def test_apportion_sums_and_is_within_one():
    weights = [0.5, 0.301, 0.199]
    counts = apportion(weights, BLOCK)
    assert counts.sum() == BLOCK
    assert np.abs(counts - np.array(weights) * BLOCK).max() < 1


def test_batches_are_a_pure_function_of_seed_and_step(shards):
    stream = TokenStream(shards, {"big": 3, "small": 1}, 16, 8, seed=1)
    again = TokenStream(shards, {"small": 1, "big": 3}, 16, 8, seed=1)
    stream.batch(3)
    for step in (7, 0):
        for ours, theirs in zip(stream.batch(step), again.batch(step), strict=True):
            assert np.array_equal(ours, theirs)
    assert not np.array_equal(stream.batch(0)[0], TokenStream(shards, stream.weights, 16, 8, seed=2).batch(0)[0])


def test_batch_split_does_not_change_the_samples(shards):
    wide = TokenStream(shards, {"big": 1, "small": 1}, 16, 8, seed=1)
    narrow = TokenStream(shards, {"big": 1, "small": 1}, 16, 4, seed=1)
    for part in (0, 1):
        whole, pieces = wide.batch(5)[part], [narrow.batch(10)[part], narrow.batch(11)[part]]
        assert np.array_equal(whole, np.concatenate(pieces))


def test_each_epoch_sees_every_window_once(shards):
    stream = TokenStream(shards, {"big": 1}, 100, 13, seed=3)  # 1,234 tokens: 13 windows
    for epoch in (0, 1):
        tokens, _ = stream.batch(epoch)
        assert sorted(set(tokens[:, 0])) == list(range(0, 1300, 100))
        assert set(tokens[:, 1:].ravel()) == set(range(1234))
    assert stream.epochs(2) == {"big": 2.0}


def test_weights_are_honoured_in_every_block(shards):
    stream = TokenStream(shards, {"big": 0.75, "small": 0.25}, 16, 8, seed=4)
    for block in (0, 3):
        which, index = stream.samples(np.arange(block * BLOCK, (block + 1) * BLOCK))
        assert np.bincount(which).tolist() == [3072, 1024]
        assert sorted(index[which == 1]) == list(range(block * 1024, (block + 1) * 1024))


def test_segments_change_at_document_ends_and_at_the_seam(shards):
    tokens, segments = TokenStream(shards, {"small": 1}, 16, 1, seed=0).batch(0)
    assert tokens[0].tolist() == [10_000 + position % 8 for position in range(17)]
    assert segments[0].tolist() == [0] * 5 + [1] * 3 + [2] * 5 + [3] * 3 + [4]


def test_heldout_rows_are_disjoint_and_short_sources_give_none(shards):
    tokens, bytes_per_token = heldout_rows(shards, "big", 10, 3)
    assert tokens.shape == (3, 11) and bytes_per_token == 4.0
    assert len({*tokens[:, 1:].ravel()}) == 30
    assert heldout_rows(shards, "small", 10, 3)[0].shape == (0, 11)


def test_damage_is_named(shards):
    ShardSet(shards / "big" / "train").verify()
    path = shards / "big" / "train" / "tokens.bin"
    raw = bytearray(path.read_bytes())
    raw[3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"tokens\.bin has changed"):
        ShardSet(shards / "big" / "train").verify()
    path.write_bytes(raw[:-2])
    with pytest.raises(ValueError, match="length"):
        ShardSet(shards / "big" / "train")


def test_bad_weights_are_refused(shards):
    with pytest.raises(ValueError, match="mixture weights"):
        normalised({"a": -1.0, "b": 2.0})
    with pytest.raises(ValueError, match="mixture weights"):
        normalised({"a": 0.0})
    with pytest.raises(ValueError, match="nowhere"):
        TokenStream(shards, {"nowhere": 1.0}, 16, 8, seed=0)
