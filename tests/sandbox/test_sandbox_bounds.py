"""Commands may fork and are bounded together; profiles; the weaker sandbox and the refusals."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from noria.sandbox import (
    BROWSER,
    BROWSER_LIMITS,
    PROGRAMS,
    Candidate,
    Limits,
    Profile,
    Sandbox,
    SandboxUnavailable,
    Workspace,
    bubblewrap,
    cgroups,
    check,
)
from noria.sandbox import check as check_function
from noria.sandbox.cgroups import Place, locate

check_module = __import__("noria.sandbox.check", fromlist=["check"])
SMALL = Limits(cpu_seconds=2, wall_seconds=5.0, memory_bytes=128 << 20)


@pytest.fixture(scope="module")
def box():
    with Sandbox(SMALL, workers=1) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def weaker():
    with Sandbox(SMALL, workers=1, kind="landlock") as sandbox:
        yield sandbox


def test_a_command_may_start_others_and_use_a_shell(box):
    outcome = box.run_command(["sh", "-c", "for i in 1 2 3; do echo $i; done | sort -r | head -2; (echo sub) & wait"])
    assert outcome.status == "ok" and outcome.output.split() == ["3", "2", "sub"]


def test_a_command_may_change_permissions_and_run_what_it_wrote(box):
    script = b"#!/bin/sh\necho ran by $(id -u)\n"
    outcome = box.run_command(["sh", "-c", "chmod +x s && ./s"], {"s": script})
    assert outcome.output == "ran by 65534\n"


def test_a_script_that_one_command_wrote_can_be_run_by_the_next(box):
    workspace = Workspace(box)
    workspace.run(["sh", "-c", "printf '#!/bin/sh\\necho again' > s; chmod +x s; echo 'echo no' > t"])
    assert workspace.run(["./s"]).output == "again\n"
    assert workspace.run(["./t"]).exit_code == 127  # Permission denied


def test_a_command_finds_the_interpreter(box):
    name = os.path.basename(bubblewrap.executable())
    assert box.run_command([name, "-c", "print(6 * 7)"]).output == "42\n"


def test_processes_of_a_command_are_counted_together(box):
    hog = "import os, time\nn = 0\ntry:\n  while n < 99:\n    if os.fork() == 0: time.sleep(9)\n    n += 1\n"
    hog += "except OSError: print(n)"
    outcome = box.run_command([*bubblewrap.interpreter(), "-c", hog])
    assert 4 <= int(outcome.output) <= SMALL.processes


@pytest.mark.skipif("memory" not in cgroups.places(), reason="no control group can be made here")
def test_memory_of_a_command_is_bounded_together_and_running_out_is_no_failure_of_the_sandbox(box):
    # Each stays below the limit of a process; the first of them dies long before all are done.
    hog = "import os, time\nfor _ in range(8):\n  if os.fork() == 0:\n"
    hog += "    x = b'x' * (70 << 20)\n    time.sleep(1)\n    os._exit(0)\n"
    hog += (
        "codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(8)]\nprint(sum(code == 0 for code in codes))"
    )
    outcome = box.run_command([*bubblewrap.interpreter(), "-c", hog])
    assert outcome.status == "crash" or int(outcome.output) <= 3, outcome
    assert box.run_command(["echo", "on"]).output == "on\n"


def test_groups_are_gone_with_their_sandbox():
    with Sandbox(SMALL, workers=1) as sandbox:
        sandbox.run_command(["true"])
        made = [folder for place in cgroups.places().values() for folder in place.folder.glob(f"noria-{os.getpid()}-*")]
        mine = {folder for folder in made if str(folder) in str(sandbox._idle[0]._group._folders)}
        assert len(mine) == len(cgroups.places())
    assert not any(folder.exists() for folder in mine)


@pytest.mark.parametrize(
    ("groups", "mounts", "expected"),
    [
        ("8:pids:/\n0::/\n", "1 2 0:3 / {at}/pids rw shared:1 - cgroup cgroup rw,pids", Place(Path("{at}/pids"), 1)),
        ("8:pids:/a/b\n", "1 2 0:3 / {at}/pids rw - cgroup cgroup rw,pids", Place(Path("{at}/pids/a/b"), 1)),
        ("8:pids:/docker/x\n", "1 2 0:3 /docker/x {at} rw - cgroup cgroup rw,pids", Place(Path("{at}"), 1)),
        ("8:pids:/elsewhere\n", "1 2 0:3 /docker/x {at} rw - cgroup cgroup rw,pids", None),
        ("0::/user.slice/me\n", "1 2 0:3 / {at} rw - cgroup2 cgroup2 rw", Place(Path("{at}/user.slice/me"), 2)),
        ("0::/other\n", "1 2 0:3 / {at} rw - cgroup2 cgroup2 rw", None),
        ("", "", None),
    ],
)
def test_the_own_group_is_found_in_either_version(tmp_path, groups, mounts, expected):
    (tmp_path / "user.slice" / "me").mkdir(parents=True)
    (tmp_path / "user.slice" / "me" / "cgroup.controllers").write_text("cpu memory pids\n")
    found = locate("pids", groups, mounts.format(at=tmp_path))
    assert found == (expected and Place(Path(str(expected.folder).format(at=tmp_path)), expected.version))


def test_a_profile_shows_more_and_what_it_adds_is_emptied_after_each_job():
    with Sandbox(SMALL, workers=1, profile=PROGRAMS) as sandbox:
        outcome = sandbox.run_command(
            ["sh", "-c", "echo x > /tmp/left; echo y > /dev/shm/left; ls /proc | grep -cx self"]
        )
        assert outcome.output.strip() == "1" and outcome.files == {}
        assert sandbox.run_command(["ls", "-A", "/tmp", "/dev/shm"]).output.split() == ["/dev/shm:", "/tmp:"]
        for path in ("/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/proc/self/oom_score_adj"):
            before = sandbox.run_command(["sh", "-c", f"echo -1 > {path}"])
            assert before.exit_code != 0, path
        seen = sandbox.run_command(["sh", "-c", "ls -d /proc/[0-9]* | wc -l"])
        assert int(seen.output) <= 6  # its own processes, none of the host


@pytest.mark.slow
@pytest.mark.skipif(not Path("/usr/lib/chromium/chromium").exists(), reason="Debian's chromium is not installed")
def test_a_browser_shows_a_local_page_and_reaches_nothing_else(tmp_path):
    page = b"<body><script>document.body.append('sum ' + (1 + 2))</script></body>"
    secret = tmp_path / "secret.html"
    secret.write_text("the secret")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--user-data-dir=/tmp/profile", "--dump-dom"]
    with Sandbox(BROWSER_LIMITS, workers=1, profile=BROWSER) as sandbox:
        shown = sandbox.run_command(
            ["/usr/lib/chromium/chromium", *options, "file:///work/page.html"], {"page.html": page}
        )
        assert shown.status == "ok" and "sum 3" in shown.output, shown
        denied = sandbox.run_command(["/usr/lib/chromium/chromium", *options, f"file://{secret}"])
        assert denied.status == "ok" and "the secret" not in denied.output


def test_a_profile_that_needs_a_bound_on_memory_is_refused_without_one(monkeypatch):
    report = check_module.Report(True, "x", "x", True, False)
    monkeypatch.setattr(check_module, "check", lambda *_: report)
    with pytest.raises(SandboxUnavailable, match="control group"):
        Sandbox(profile=Profile("large", bounds_address_space=False))


def test_the_weaker_sandbox_runs_functions_and_commands_and_says_what_it_is(weaker):
    assert weaker.label == "landlock (weaker)" and "WEAKER" in weaker.report.detail
    assert weaker.run_functions([Candidate("def f(x): return x + 1", "f", [[1]])])[0].values == [2]
    workspace = Workspace(weaker, {"d/a": b"x\n"})
    assert workspace.run(["sh", "-c", "cat d/a | tr x y > b; mkdir e; echo z > e/c; rm d/a"]).exit_code == 0
    assert workspace.files == {"b": b"y\n", "e/c": b"z\n"}
    assert workspace.run(["cat", "/etc/passwd"]).exit_code == 1
    assert weaker.run_function(Candidate("import os\ndef f(x): return os.listdir('.')", "f", [[1]])).values == [[]]


def test_the_weaker_sandbox_leaves_no_folder_behind():
    with Sandbox(SMALL, workers=1, kind="landlock") as sandbox:
        sandbox.run_command(["true"])
        folder = Path(sandbox._idle[0]._folder)
        assert folder.is_dir()
    assert not folder.exists()


def test_the_weaker_sandbox_has_no_profiles_that_need_namespaces():
    with pytest.raises(SandboxUnavailable, match="needs namespaces"):
        Sandbox(kind="landlock", profile=PROGRAMS)


@pytest.fixture
def no_namespaces(monkeypatch):
    monkeypatch.setattr(bubblewrap, "_arguments", lambda *_: ["--no-such-option"])
    monkeypatch.delenv(check_module.ALLOW_WEAKER, raising=False)
    bubblewrap.probe.cache_clear()
    check_function.cache_clear()
    yield
    bubblewrap.probe.cache_clear()
    check_function.cache_clear()


def test_without_namespaces_the_weaker_one_is_taken_only_when_asked_for(no_namespaces, monkeypatch):
    with pytest.raises(SandboxUnavailable, match="allow_weaker=True"):
        Sandbox()
    with Sandbox(SMALL, workers=1, allow_weaker=True) as sandbox:
        assert sandbox.label == "landlock (weaker)"
    monkeypatch.setenv(check_module.ALLOW_WEAKER, "1")
    with Sandbox(SMALL, workers=1) as sandbox:
        assert sandbox.label == "landlock (weaker)"
    with pytest.raises(SandboxUnavailable):
        Sandbox(allow_weaker=False)


@pytest.mark.skipif(os.getuid() != 0, reason="only root could be an owner inside")
def test_a_root_that_can_not_be_given_up_may_change_no_permissions(monkeypatch):
    monkeypatch.setattr(bubblewrap, "probe", lambda: bubblewrap.Probe("x", "", gives_up_root=False))
    check_function.cache_clear()
    try:
        with Sandbox(SMALL, workers=1) as sandbox:
            assert "as root" in sandbox.report.detail
            assert sandbox.run_command(["chmod", "600", "/dev/null"]).exit_code == 1
            assert sandbox.run_command(["sh", "-c", "echo x > a; cat a"]).output == "x\n"
    finally:
        check_function.cache_clear()


def test_with_namespaces_the_weaker_one_is_never_taken(monkeypatch):
    monkeypatch.setenv(check_module.ALLOW_WEAKER, "1")
    with Sandbox(SMALL, workers=1, allow_weaker=True) as sandbox:
        assert sandbox.label == "bubblewrap" == check().label


def test_a_command_that_is_no_command_is_refused(box):
    for argv in ([], [""], ["echo", "a\0b"], ["echo", "x" * (1 << 20)]):
        assert box.run_command(argv).status == "refused"


def test_output_that_is_no_text_and_files_with_odd_names_are_outcomes(box):
    outcome = box.run_command(["sh", "-c", r"printf '\377\000\033[2J<|end|>'; touch \"$(printf 'a\033b')\" plain"])
    assert outcome.status == "ok" and "<|end|>" in outcome.output
    assert list(outcome.files) == ["plain"] and all(name.isprintable() for name in outcome.skipped)


def test_files_beyond_half_of_the_workspace_stay_out_and_the_next_call_still_runs(box):
    workspace = Workspace(box, {"keep": b"x"})
    many = "for i in 1 2 3 4 5 6 7 8 9 10; do head -c 1000000 /dev/zero > big$i; done"
    outcome = workspace.run(["sh", "-c", many])
    assert outcome.skipped and sum(map(len, workspace.files.values())) <= SMALL.workspace_bytes // 2
    assert workspace.run(["cat", "keep"]).output == "x"
