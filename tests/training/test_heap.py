"""Freed memory stays mapped within, and goes back after the outermost one."""

from __future__ import annotations

import platform

import pytest
import torch

from noria.training import Annotated, LoopConfig, train
from noria.training.heap import Heap, kept_mapped
from tests.training.test_objectives import full_batch, tiny

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc, which is left alone")
NUMBERS = 40 << 20
SIZE = 4 * NUMBERS


@pytest.fixture(autouse=True)
def nothing_free() -> None:
    """What other tests have freed goes back first: it would be used again unseen."""
    with kept_mapped():
        pass


def resident_bytes() -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))


def after_filling() -> int:
    """Resident bytes once as much memory was filled and freed, beyond those before."""
    before = resident_bytes()
    torch.ones(NUMBERS)
    return resident_bytes() - before


def test_what_was_freed_stays_and_afterwards_goes_back():
    before = resident_bytes()
    with kept_mapped():
        assert after_filling() > 0.9 * SIZE
    assert resident_bytes() - before < 0.5 * SIZE
    assert after_filling() < 0.5 * SIZE


def test_one_within_another_does_not_end_it():
    with kept_mapped():
        with kept_mapped():
            pass
        assert after_filling() > 0.9 * SIZE


def test_it_ends_with_an_error_too():
    before = resident_bytes()
    with pytest.raises(KeyError), kept_mapped():
        torch.ones(NUMBERS)
        raise KeyError
    assert resident_bytes() - before < 0.5 * SIZE


def test_once_a_step_has_another_shape_nothing_is_kept():
    before = resident_bytes()
    with kept_mapped() as heap:
        for shape, stays in [((1, 2), True), ((1, 2), True), ((1, 3), False), ((1, 3), False)]:
            heap.expect(shape)
            torch.ones(NUMBERS)
            assert (resident_bytes() - before > 0.5 * SIZE) == stays


def test_a_run_tells_the_shape_of_each_step(monkeypatch):
    seen = []
    monkeypatch.setattr(Heap, "expect", lambda _, shape: seen.append(tuple(shape)))
    train(tiny(), lambda step: Annotated(full_batch()), LoopConfig(steps=2, learning_rate=0.01))
    assert seen == [tuple(full_batch().tokens_BT.shape)] * 2
