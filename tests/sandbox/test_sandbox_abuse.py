"""The abuse suite: every attempt on both sandboxes fails, for the reason expected; those that can be shown to work
without a sandbox are."""

from __future__ import annotations

import subprocess
from collections import Counter

import pytest

from noria.sandbox import BROWSER, Candidate
from noria.sandbox.abuse import CLASSES, Attempt, Range, source
from noria.sandbox.bubblewrap import interpreter
from noria.sandbox.seccomp import inner_filter, outer_filter, single_command_filter

QUICK = ("file system", "network", "kernel surface", "processes")  # as functions; all others wait for limits of time
TRIALS = [
    pytest.param(
        kind,
        attempt,
        mode,
        id=f"{kind}-{mode}-{name}-{attempt.name}",
        marks=[] if (kind, mode) == ("bubblewrap", "function") and name in QUICK else pytest.mark.slow,
    )
    for kind in ("bubblewrap", "landlock")
    for name, attempts in CLASSES.items()
    for attempt in attempts
    for mode in attempt.modes
]
HARMLESS = [attempt for attempts in CLASSES.values() for attempt in attempts if attempt.harmless]


@pytest.fixture(scope="module")
def ranges():
    opened: dict[str, Range] = {}

    def get(kind: str) -> Range:
        if kind not in opened:
            opened[kind] = Range(kind)
        return opened[kind]

    yield get
    for place in opened.values():
        place.box.close()
        place.__exit__()


@pytest.mark.parametrize(("kind", "attempt", "mode"), TRIALS)
def test_the_attempt_is_denied_as_expected(ranges, kind, attempt, mode):
    result = ranges(kind).make(attempt, mode)
    assert result.verdict == "held" or (result.verdict == "allowed" and kind == "landlock"), result


@pytest.mark.parametrize("name", ["network", "file system"])
def test_a_larger_profile_opens_what_it_says_and_nothing_else(name):
    with Range("bubblewrap", BROWSER) as place:
        results = [place.make(attempt, "function") for attempt in CLASSES[name] if "function" in attempt.modes]
    assert [result for result in results if result.verdict not in ("held", "allowed")] == []
    allowed = {result.attempt for result in results if result.verdict == "allowed"}
    assert allowed == {"network": {"a Unix socket"}, "file system": {"read /proc"}}[name]


@pytest.mark.parametrize("attempt", HARMLESS, ids=lambda attempt: attempt.name)
def test_without_a_sandbox_it_would_succeed(attempt, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret")
    program = f"{source(attempt)}\nprint(f({str(secret)!r}))"
    done = subprocess.run([*interpreter(), "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "escaped"


def test_each_class_has_attempts_and_no_two_share_a_name():
    names = Counter(attempt.name for attempts in CLASSES.values() for attempt in attempts)
    assert sum(names.values()) >= 60 and len(CLASSES) == 8 and all(len(attempts) >= 8 for attempts in CLASSES.values())
    assert max(names.values()) == 1
    assert not any("escaped" in attempt.denied for attempts in CLASSES.values() for attempt in attempts)


@pytest.mark.parametrize(
    ("body", "verdict", "why"),
    [
        ("return 'escaped'", "escaped", "succeeded"),
        ("return misspelt", "unproven", "expected one of"),
        ("return open(secret).read()", "held", ""),
        ("open('given', 'w').write('x' * 9)\nreturn 'as expected'", "held", ""),
    ],
)
def test_a_range_tells_success_denial_and_a_slip_apart(ranges, body, verdict, why):
    result = ranges("bubblewrap").make(Attempt("planted", body, ("ENOENT", "as expected")), "function")
    assert result.verdict == verdict and why in result.why


def test_a_range_sees_a_secret_that_came_out(ranges):
    place = ranges("bubblewrap")
    leak = f"return {place.secret.read_text()!r}"
    assert place.make(Attempt("planted", leak, (place.secret.read_text(),)), "function").verdict == "escaped"
    file = f"open('x', 'w').write({place.secret.read_text()!r})\nreturn ''"
    assert place.make(Attempt("planted", file, ("",)), "command").verdict == "escaped"


def test_a_range_sees_that_the_host_changed(ranges):
    place = ranges("bubblewrap")
    (place.secret.parent / "planted").write_text("x")
    try:
        assert place.make(Attempt("planted", "return ''", ("",)), "function").why == "files of the host changed"
    finally:
        (place.secret.parent / "planted").unlink()


def test_a_range_sees_that_the_server_ended(ranges):
    place = ranges("bubblewrap")
    run = place._run

    def run_and_kill(attempt, mode):
        outcome = run(attempt, mode)
        place.box._idle[0]._process.kill()
        place.box._idle[0]._process.wait()
        place.box.run_functions([Candidate("def f(x): return x", "f", [[1]])])
        return outcome

    place._run = run_and_kill
    try:
        assert place.make(Attempt("planted", "return ''", ("",)), "function").why == "the server ended"
    finally:
        place._run = run


def test_filters_differ_by_machine_and_are_well_formed():
    for machine in ("x86_64", "aarch64"):
        for program in (
            outer_filter(machine),
            outer_filter(machine, unix_sockets=True, owner=True, signals=False),
            inner_filter(machine),
            single_command_filter(machine),
        ):
            assert program and len(program) % 8 == 0 and len(program) // 8 < 4096
    assert outer_filter("riscv64") == b""
