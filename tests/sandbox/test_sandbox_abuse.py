"""Attempts to get out, to spy, to exhaust, to forge. Each returns "escaped" where it succeeds; none may."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from noria.sandbox import Candidate, Limits, Sandbox
from noria.sandbox.seccomp import inner_filter, outer_filter

# name -> body of f(secret), where `secret` is the path of a file of the host. It returns "escaped" on success.
ATTEMPTS = {
    "read_a_file_of_the_host": "return 'escaped' if open(secret).read() else ''",
    "read_etc_passwd": "return 'escaped' if open('/etc/passwd').read() else ''",
    "see_the_home_folder": "import os\nreturn 'escaped' if '.bashrc' in os.listdir('/root') else ''",
    "write_into_usr": "open('/usr/planted', 'w').write('x')\nreturn 'escaped'",
    "write_into_the_root": "open('/planted', 'w').write('x')\nreturn 'escaped'",
    "write_beside_the_secret": "open(secret + '.planted', 'w').write('x')\nreturn 'escaped'",
    "open_a_socket": "import socket\nsocket.socket()\nreturn 'escaped'",
    "open_a_unix_socket": "import socket\nsocket.socket(socket.AF_UNIX)\nreturn 'escaped'",
    "fork": "import os\nif os.fork() == 0: os._exit(0)\nreturn 'escaped'",
    "fork_bomb": "import os\nwhile True: os.fork()",
    "run_a_program": "import os\nos.execv('/usr/bin/id', ['id'])",
    "run_a_shell": "import subprocess\nsubprocess.run(['sh', '-c', 'id'])\nreturn 'escaped'",
    "kill_everyone": "import os\nos.kill(-1, 9)\nreturn 'escaped'",
    "kill_the_parent": "import os\nos.kill(os.getppid(), 9)\nreturn 'escaped'",
    "stop_the_parent": "import os, signal\nos.kill(1, signal.SIGSTOP)\nreturn 'escaped'",
    "signal_by_pidfd": "import os, signal\nsignal.pidfd_send_signal(os.pidfd_open(1), 9)\nreturn 'escaped'",
    "read_proc_of_the_parent": "return 'escaped' if open('/proc/1/environ').read() is not None else ''",
    "read_sys": "import os\nreturn 'escaped' if os.listdir('/sys') else ''",
    "new_user_namespace": "import ctypes\nreturn 'escaped' if ctypes.CDLL(None).unshare(0x10000000) == 0 else ''",
    "mount": "import ctypes\nreturn 'escaped' if ctypes.CDLL(None).mount(b'x', b'/work', b'tmpfs', 0, 0) == 0 else ''",
    "trace_the_parent": "import ctypes\nreturn 'escaped' if ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0 else ''",
    "io_uring": "import ctypes\nreturn 'escaped' if ctypes.CDLL(None).syscall(425, 1, b'0' * 120) >= 0 else ''",
    "perf_events": "import ctypes\nlibc = ctypes.CDLL(None)\n"
    "return 'escaped' if libc.syscall(298, b'0' * 120, 0, -1, -1, 0) >= 0 else ''",
    "shared_memory_that_stays": "import ctypes\nreturn 'escaped' if ctypes.CDLL(None).shmget(7, 9, 950) >= 0 else ''",
    "make_a_device": "import os\nos.mknod('/work/mem', 0o20666, os.makedev(1, 1))\nreturn 'escaped'",
    "become_root": "import os\nos.setuid(0)\nreturn 'escaped'",
    "change_the_root": "import os\nos.chroot('/work')\nreturn 'escaped'",
    "raise_a_limit": "import resource as r\nr.setrlimit(r.RLIMIT_CPU, (999, 999))\nreturn 'escaped'",
    "memory_hog": "x = bytearray(2 << 30)\nreturn 'escaped'",
    "memory_hog_in_small_pieces": "x = []\nwhile len(x) < 3000: x.append(bytearray(1 << 20))\nreturn 'escaped'",
    "fill_the_workspace": "for i in range(64): open(f'/work/{i}', 'wb').write(b'0' * 1000000)\nreturn 'escaped'",
    "one_huge_file": "open('/work/huge', 'wb').write(b'0' * (64 << 20))\nreturn 'escaped'",
    "open_every_file": "import os\nfor i in range(500): os.open('/dev/null', 0)\nreturn 'escaped'",
    "flood_stdout": "for _ in range(4096): print('x' * 65536, flush=True)\nreturn 'escaped'",
    "spin": "while True: pass",
    "sleep": "import time\ntime.sleep(3600)\nreturn 'escaped'",
    "ignore_the_limit": "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
    "exit_as_if_all_were_well": "import sys\nsys.exit(0)",
    "exit_hard_as_if_all_were_well": "import os\nos._exit(0)",
    "dump_core": "import os\nos.abort()",
    "result_that_is_too_long": "return 'x' * (8 << 20)",
    "result_nested_too_deep": "import os\nos.write(3, b'[' * 200000)\nos._exit(0)",
    "result_that_is_no_json": "import os\nos.write(3, b'\\xff\\xfe verdict: pass')\nos._exit(0)",
    "result_with_a_status": 'import os\nos.write(3, b\'{"status": "ok", "verdict": "pass"}\')\nos._exit(0)',
    "write_to_every_other_descriptor": (
        "import os\nfor fd in range(4, 64):\n  try: os.write(fd, b'{\"exit\": 0}\\n')\n"
        "  except OSError: continue\n  return 'escaped'\nreturn ''"
    ),
}


@pytest.fixture(scope="module")
def box():
    limits = Limits(cpu_seconds=1, wall_seconds=3.0, memory_bytes=256 << 20)
    with Sandbox(limits, workers=2) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def outcomes(box, tmp_path_factory):
    folder = tmp_path_factory.mktemp("host")
    secret = folder / "secret.txt"
    secret.write_text("the host's secret")
    candidates = [
        Candidate("def f(secret):\n  " + body.replace("\n", "\n  "), "f", [[str(secret)]]) for body in ATTEMPTS.values()
    ]
    results = dict(zip(ATTEMPTS, box.run_functions(candidates), strict=True))
    return results, folder


@pytest.mark.parametrize("name", ATTEMPTS)
def test_attempt_fails(outcomes, name):
    results, _ = outcomes
    result = results[name]
    assert result.status in ("ok", "error", "timeout", "crash"), result
    assert result.values in (None, [""]), result


def test_the_sandbox_still_works_after_all_of_them(outcomes, box):
    again = box.run_functions([Candidate(f"def f(x): return x + {n}", "f", [[1]]) for n in range(8)])
    assert [result.values for result in again] == [[n + 1] for n in range(8)]


def test_nothing_of_the_host_changed(outcomes):
    _, folder = outcomes
    assert [path.name for path in folder.iterdir()] == ["secret.txt"]
    assert not Path("/usr/planted").exists() and not Path("/planted").exists()


def test_loops_and_sleeps_are_timeouts(outcomes):
    results, _ = outcomes
    assert {results[name].status for name in ("spin", "sleep", "ignore_the_limit")} == {"timeout"}


def test_output_is_kept_up_to_its_bound(outcomes, box):
    results, _ = outcomes
    assert len(results["flood_stdout"].output) <= box.limits.output_bytes


def test_a_candidate_that_writes_its_own_result_has_only_chosen_its_values(box):
    forged = "import os\ndef f(x):\n  os.write(3, b'{\"values\": [7]}')\n  os._exit(0)"
    result = box.run_functions([Candidate(forged, "f", [[1]])])[0]
    assert result.values == [7]  # the same as `return 7`: what was expected is not known inside


def test_a_candidate_sees_neither_the_environment_nor_other_candidates(box):
    source = "import os, sys\ndef f(x): return [dict(os.environ), [a for a in sys.argv if len(a) > 20], os.getuid()]"
    environment, arguments, uid = box.run_functions([Candidate(source, "f", [[1]])])[0].values[0]
    assert set(environment) <= {"PWD", "LC_CTYPE"} and arguments == [] and uid not in (0, os.getuid())


def test_a_fork_bomb_of_a_command_ends_with_it(box):
    bomb = box.run_command(["perl", "-e", "fork while 1"])
    assert bomb.status in ("timeout", "crash", "ok")
    assert box.run_command(["cat", "a"], {"a": b"still here"}).output == "still here"


def test_filters_differ_by_machine_and_are_well_formed():
    for machine in ("x86_64", "aarch64"):
        for program in (outer_filter(machine), inner_filter(machine)):
            assert program and len(program) % 8 == 0 and len(program) // 8 < 4096
    assert outer_filter("riscv64") == b""
    assert platform.machine() in ("x86_64", "aarch64") or outer_filter(platform.machine()) == b""
