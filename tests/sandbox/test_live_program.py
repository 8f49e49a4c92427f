"""A program that stays alive in its sandbox: spoken to, bounded in time, and ended with all that it started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from noria.sandbox import Limits, Profile
from noria.sandbox.program import LiveProgram, ProgramEnded, ProgramSilent

LIMITS = Limits(processes=8)


def start(script):
    return LiveProgram(["/bin/sh", "-c", script], LIMITS, Profile())


def test_it_answers_line_by_line_and_keeps_its_state():
    with start('while read -r word; do n=$((n + 1)); echo "$n $word"; done') as program:
        program.send(b"one\ntwo\n")
        assert program.receive(b"\n", 20) == b"1 one" and program.receive(b"\n", 20) == b"2 two"
        program.send(b"three\n")
        assert program.receive(b"\n", 20) == b"3 three"


def test_it_sees_neither_network_nor_the_hosts_files():
    here = Path(__file__)
    with start(f"test -e {here} || echo hidden; (echo > /x) 2>/dev/null || echo read-only; read -r _") as program:
        assert program.receive(b"\n", 20) == b"hidden" and program.receive(b"\n", 20) == b"read-only"


def test_silence_and_an_end_are_errors():
    with start("read -r _") as program, pytest.raises(ProgramSilent, match="said nothing for"):
        program.receive(b"\n", 0.05)
    with start("exit 3") as program, pytest.raises(ProgramEnded, match="has ended"):
        program.receive(b"\n", 20)
    with start("exit 3") as program, pytest.raises(ProgramEnded):
        for _ in range(1000):
            program.send(b"x" * 4096)


def test_closing_ends_it_and_all_that_it_started():
    program = start("sleep 1000 & echo started; wait")
    assert program.receive(b"\n", 20) == b"started"
    pid = program._process.pid
    program.close()
    assert not Path("/proc", str(pid)).exists()
    program.close()


def test_a_fork_that_closes_it_leaves_it_alive():
    with start("read -r word; echo still $word") as program:
        child = os.fork()
        if child == 0:
            program.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        program.send(b"here\n")
        assert program.receive(b"\n", 20) == b"still here"
