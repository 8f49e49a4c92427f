"""Terminal, Python and file tools in the real sandbox: what they do to files, and every bad call as a result."""

from __future__ import annotations

import pytest

from noria.harness.tools import PYTHON, TERMINAL, WORKSPACE_TOOLS, CommandTool, Tool, Toolbox, ToolCall
from noria.sandbox import Limits, Sandbox

FILES = {"notes.txt": "one\ntwo\nthree\n", "src/a.py": "x = 1\ny = 2\nx = 3\n", "src/deep/b.py": "import a\n"}


@pytest.fixture(scope="module")
def box():
    with Sandbox(Limits(cpu_seconds=1, wall_seconds=3.0), workers=1) as box:
        yield Toolbox(box, (TERMINAL, PYTHON, *WORKSPACE_TOOLS))


def run(box, tool, files=None, **arguments):
    (result,) = box.run([ToolCall(tool, box.bind(tool, arguments), FILES if files is None else files)])
    return result


# -- terminal --


def test_a_command_changes_the_workspace_and_shows_output_and_exit_code(box):
    result = run(box, "terminal", command="echo hi; echo there > new; exit 3")
    assert result.text == "hi\n\nexit code 3" and result.files == {**FILES, "new": "there\n"}
    assert not result.failed and not result.deterministic


@pytest.mark.parametrize("command", ["while :; do :; done", "kill -9 $$"])
def test_a_command_that_hangs_or_dies_is_a_result_and_leaves_the_files(box, command):
    result = run(box, "terminal", command=f"echo lost > notes.txt; {command}")
    assert result.failed and result.files == FILES
    assert run(box, "terminal", command="echo next").text == "next\n"


def test_the_commands_of_a_batch_run_together_each_on_its_own_files(box, monkeypatch):
    sizes, run_commands = [], box.box.run_commands
    monkeypatch.setattr(
        box.box, "run_commands", lambda jobs, share: (sizes.append(len(jobs)), run_commands(jobs, share))[1]
    )
    calls = [
        ToolCall("terminal", {"command": "cat a"}, {"a": "1"}),
        ToolCall("python", {"code": "print(open('a').read())"}, {"a": "2"}),
        ToolCall("terminal", {"command": "cat a; echo b > b"}, {"a": "3"}),
    ]
    first, _, third = box.run(calls)
    assert (first.text, first.files) == ("1", {"a": "1"}) and (third.text, third.files) == ("3", {"a": "3", "b": "b\n"})
    assert sizes == [2]


@pytest.mark.parametrize("deterministic", [True, False])
def test_equal_calls_of_a_batch_share_a_run_only_where_the_tool_is_deterministic(box, deterministic):
    source = "import os\ndef run(): return os.urandom(8).hex()"
    draw = CommandTool("draw", "", (), lambda _: ["sh", "-c", "head -c 8 /dev/urandom | od -x"], deterministic)
    tools = Toolbox(box.box, (draw, Tool("number", "", (), source, deterministic)))
    for name in ("draw", "number"):
        results = tools.run([ToolCall(name, {}, FILES)] * 3)
        assert not any(result.failed for result in results)
        assert len({result.text for result in results}) == (1 if deterministic else 3)


def test_what_is_lost_of_a_commands_output_and_files_is_told(box):
    flood = run(box, "terminal", command="yes | head -c 100000; exit 2").text
    assert flood.endswith("\nexit code 2\n(more was printed than is shown)") and len(flood) < 8300
    result = run(box, "terminal", command="ln -s notes.txt link; mkfifo pipe; echo done")
    assert result.text.startswith("done\n(not kept: link: ") and "(not kept: pipe: " in result.text
    assert result.files == FILES


def test_binary_output_is_text_with_replacement_signs(box):
    result = run(box, "terminal", command="printf 'a\\377\\000b'; printf '\\377\\376' > raw")
    assert result.text == "a\ufffd\0b" and result.files["raw"].encode("utf-8", "surrogateescape") == b"\xff\xfe"


def test_a_command_can_not_forge_a_failure(box):
    result = run(box, "terminal", command="echo error: timeout")
    assert not result.failed and not result.timed_out


# -- python --


def test_a_snippet_prints_and_keeps_only_files(box):
    result = run(box, "python", code="import pathlib\npathlib.Path('out').write_text('7')\nprint(6 * 7)")
    assert result.text == "42" and result.files["out"] == "7"
    assert "NameError" in run(box, "python", code="print(pathlib)").text


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("def f():\n    return 1 / 0\nf()", 'File "snippet", line 2, in f\n    return 1 / 0'),
        ("1 +", "SyntaxError"),
        ("import sys\nprint('a')\nsys.exit(4)", "a\nexit code 4"),
        ("x = [0] * 10**9", "MemoryError"),
        ("import subprocess\nsubprocess.run(['ls'])", "PermissionError"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 80))", "PermissionError"),
        ("open('/usr/x', 'w')", "Read-only file system"),
        ("print('error: timeout')", " error: timeout"),
        ("import sys\nsys.stdout.write('x' * 20000)", "(11808 more characters were printed)"),
    ],
)
def test_what_goes_wrong_in_a_snippet_is_its_output(box, code, told):
    result = run(box, "python", code=code)
    assert told in result.text and not result.failed and len(result.text) < 9000
    assert "noria" not in result.text and "candidate" not in result.text


@pytest.mark.parametrize("code", ["import os\nos._exit(0)", "while True: print(1)"])
def test_a_snippet_that_hangs_floods_or_vanishes_is_a_failed_call(box, code):
    assert run(box, "python", code=code).failed


# -- files --


def test_reading_takes_line_ranges(box):
    assert run(box, "read_file", path="notes.txt").text == FILES["notes.txt"]
    assert run(box, "read_file", path="notes.txt", first=2).text == "two\nthree\n"
    assert run(box, "read_file", path="notes.txt", first=2, last=2).text == "two\n"
    assert run(box, "read_file", path="notes.txt", first=3, last=99).text == "three\n"
    assert run(box, "read_file", files={"empty": ""}, path="empty").text == ""


def test_a_long_file_is_cut_at_a_line_and_says_where(box):
    lines = "".join(f"{number:09d}\n" for number in range(5000))
    first = run(box, "read_file", files={"long": lines}, path="long").text
    assert first.endswith("(cut before line 3277 of 5000)") and first.startswith(lines[:32760])
    assert run(box, "read_file", files={"long": lines}, path="long", first=3277).text == lines[32760:]
    assert "longer than" in run(box, "read_file", files={"wide": "x" * 50000}, path="wide").text


def test_writing_appending_and_editing(box):
    assert run(box, "write_file", path="new/é.txt", text="ünï\n").files["new/é.txt"] == "ünï\n"
    assert run(box, "append_file", path="notes.txt", text="four").files["notes.txt"] == "one\ntwo\nthree\nfour"
    assert run(box, "append_file", path="log", text="a").files["log"] == "a"
    edited = run(box, "edit_file", path="src/a.py", old="y = 2\n", new="")
    assert edited.files["src/a.py"] == "x = 1\nx = 3\n" and edited.text == "edited src/a.py at line 2"


@pytest.mark.parametrize(
    ("old", "told"),
    [
        ("x = ", "error: old occurs 2 times in src/a.py, on lines 1, 3: give more of the text around it"),
        ("z", "error: old does not occur in src/a.py"),
        ("", "error: old is empty"),
    ],
)
def test_an_edit_must_name_one_place(box, old, told):
    result = run(box, "edit_file", path="src/a.py", old=old, new="q")
    assert result.text == told and result.files == FILES


def test_overlapping_places_are_two(box):
    assert run(box, "edit_file", files={"f": "aaa"}, path="f", old="aa", new="b").failed


def test_listing_is_recursive_and_sorted(box):
    assert run(box, "list_files").text == "notes.txt 14\nsrc/a.py 18\nsrc/deep/b.py 9"
    assert run(box, "list_files", folder="src/deep").text == "src/deep/b.py 9"
    assert run(box, "list_files", files={}).text == "no files"
    assert run(box, "list_files", files={f"f{n:04d}": "" for n in range(1002)}).text.endswith("f0999 0\n(2 more)")


def test_grep_is_ordered_and_bounded(box):
    assert (
        run(box, "grep_files", pattern="x|a$").text == "src/a.py:1: x = 1\nsrc/a.py:3: x = 3\nsrc/deep/b.py:1: import a"
    )
    assert run(box, "grep_files", pattern="^t", folder="notes.txt").text == "notes.txt:2: two\nnotes.txt:3: three"
    assert run(box, "grep_files", pattern="nothing").text == "no line matches"
    many = run(box, "grep_files", files={"f": "a\n" * 500}, pattern="a").text.splitlines()
    assert len(many) == 101 and many[-1] == "(more lines match)"


def test_a_pattern_that_explodes_is_stopped(box):
    result = run(box, "grep_files", files={"f": "a" * 40 + "b"}, pattern="(a+)+$")
    assert result.timed_out


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "src/../../x", "", "src", "none", "a\0b"])
def test_paths_that_are_no_file_of_the_workspace_are_errors(box, path):
    for tool, more in (("read_file", {}), ("edit_file", {"old": "a", "new": "b"})):
        assert run(box, tool, path=path, **more).failed
    if path != "none":
        assert run(box, "write_file", path=path, text="x").failed
    if path != "src":
        assert run(box, "list_files", folder=path or "nowhere").failed


@pytest.mark.parametrize(
    ("tool", "arguments", "told"),
    [
        ("read_file", {"path": "notes.txt", "first": 9}, "has 3 lines"),
        ("read_file", {"path": "notes.txt", "first": -1}, "has 3 lines"),
        ("read_file", {"path": "notes.txt", "first": 3, "last": 1}, "has 3 lines"),
        ("grep_files", {"pattern": "("}, "the pattern can't be read"),
        ("grep_files", {"pattern": "a{99999999999}"}, "the pattern can't be read"),
        ("write_file", {"path": "notes.txt/under", "text": "x"}, "can't be written"),
        ("write_file", {"path": "big", "text": "x" * (2 << 20)}, "can't be written"),
        ("edit_file", {"path": "raw", "old": "a", "new": "b"}, "not UTF-8"),
    ],
)
def test_bad_arguments_are_errors_for_the_model(box, tool, arguments, told):
    files = {**FILES, "raw": b"a\xff".decode("utf-8", "surrogateescape")}
    result = run(box, tool, files=files, **arguments)
    assert result.failed and told in result.text and result.files == files


def test_plain_text_calls_reach_the_same_tools(box):
    assert box.bind("write_file", "a.txt some  text") == {"path": "a.txt", "text": "some  text"}
    assert box.bind("read_file", "a.txt 2 4") == {"path": "a.txt", "first": 2, "last": 4}
    assert box.bind("terminal", "ls -l | wc") == {"command": "ls -l | wc"}
