"""Freed memory stays mapped within, and goes back after."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from noria.training.heap import kept_mapped

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc, which is left alone")
NUMBERS = 40 << 20  # 160 MB, some 40,000 pages


def faults_of_filling() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(NUMBERS)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_what_was_freed_is_filled_again_without_a_page_fault():
    with kept_mapped():
        faults_of_filling()
        assert faults_of_filling() < 100
    assert faults_of_filling() > 1000  # huge pages would make 80 of it


def test_afterwards_it_goes_back_to_the_system():
    before = resident_bytes()
    with kept_mapped():
        torch.ones(NUMBERS)
        assert resident_bytes() - before > 3 * NUMBERS
    assert resident_bytes() - before < NUMBERS
