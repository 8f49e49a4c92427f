"""Environments as files: found by name or path, refused with a place and a reason; every family passes its gates."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from noria.harness.author_errors import drawn
from noria.harness.environment_file import EnvironmentFileError, environment_names, load_environment
from noria.harness.environments.environment import (
    TasksExhausted,
    call,
    distinct,
    follow,
    result_of,
)
from noria.harness.examine import TOOL_LIMITS, examine, play, traces_of
from noria.harness.tools import Toolbox
from noria.sandbox import Sandbox
from noria.types import Message


@pytest.mark.parametrize(
    "name",
    [name if name == "calculator" else pytest.param(name, marks=pytest.mark.slow) for name in environment_names()],
)
def test_every_family_passes_its_gates(name):
    environment = load_environment(name)
    found = examine(environment, tasks=min(10, environment.tasks_to_check), repeats=4, seed=1)
    assert [f"{gate.name}: {gate.evidence}" for gate in found.gates if not gate.passed] == []


@pytest.mark.parametrize("name", environment_names())
def test_splits_are_apart_and_difficulties_within_bounds(name):
    environment = load_environment(name)
    made = {split: environment.generate(30, 2, split) for split in environment.splits}
    ids = [task.id for tasks in made.values() for task in tasks]
    assert len(set(ids)) == len(ids)
    assert all(
        0 <= task.difficulty <= 1 and task.grader == environment.grader().ref for t in made.values() for task in t
    )
    assert len({task.difficulty for task in made["train"]}) > 1
    assert environment.name == name and environment.version


def test_too_many_tasks_are_refused():
    known = load_environment("calculator").generate(3, 0, "train")
    with pytest.raises(TasksExhausted, match="gave 3 distinct tasks of split 'train', not 4; ask for fewer"):
        distinct(lambda generator, split: generator.choice(known), "family", 4, 0, "train")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1", "sets no ENVIRONMENT"),
        ("import nothing_of_that_name", ":1: ModuleNotFoundError"),
        ("x = 1\ndef f(:\n", ":2: SyntaxError"),
        ("\n\nraise KeyError('no')", ":3: KeyError"),
        ("from noria.harness.environments.calculator import ENVIRONMENT as E\nfrom dataclasses import replace\n"
         "ENVIRONMENT = replace(E, cheats={})", "`cheats` is empty"),
        ("from noria.harness.environments.calculator import ENVIRONMENT as E\nfrom dataclasses import replace\n"
         "ENVIRONMENT = replace(E, splits=('train',))", "`splits` must have 'heldout'"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_environment_is_refused_with_its_place(tmp_path, source, said):
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(EnvironmentFileError, match=r"mine\.py") as refused:
        load_environment(tmp_path / "mine.py")
    assert said in str(refused.value)


def test_an_unknown_name_or_missing_file_is_refused(tmp_path):
    with pytest.raises(EnvironmentFileError, match="calculator, coding"):
        load_environment("nothing")
    with pytest.raises(EnvironmentFileError, match="No such file"):
        load_environment(tmp_path / "gone.py")


def test_an_edited_file_is_loaded_anew(tmp_path):
    path = tmp_path / "mine.py"
    text = "from noria.harness.environments.calculator import ENVIRONMENT as E\nfrom dataclasses import replace\n"
    path.write_text(text + "ENVIRONMENT = replace(E, name='one')")
    first = load_environment(path)
    path.write_text(text + "ENVIRONMENT = replace(E, name='two')")
    second = load_environment(path)
    assert (first.name, second.name) == ("one", "two") and first.version != second.version


def test_a_script_goes_on_where_it_is_after_others_spoke():
    policy = follow([call("read", "a"), call("read", "b"), "done"])
    assert policy([Message("user", "go")], 0) == call("read", "a")
    seen = [Message("user", "go"), Message("assistant", call("read", "a")), Message("assistant", "noise")]
    assert policy(seen, 0) == call("read", "b")
    assert policy([*seen, Message("assistant", call("read", "b"))], 0) == "done"


def test_the_result_of_a_call_is_what_came_right_after_it():
    seen = [Message("assistant", "x"), Message("tool", "1"), Message("assistant", "x"), Message("tool", "2")]
    assert result_of(seen, "x") == "2" and result_of(seen[:3], "x") == "1" and result_of(seen, "y") is None
    assert result_of(seen[:1], "x") is None


def command(capsys, *arguments):
    from noria.cli import status_of

    status = status_of(["env", *arguments])
    return status, capsys.readouterr()


def test_the_command_lists_shows_and_checks(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    status, told = command(capsys, "list")
    assert status == 0 and all(name in told.out for name in environment_names())
    status, told = command(capsys, "show", "calculator", "--tasks", "1")
    assert status == 0 and "score  1.0" in told.out
    status, told = command(capsys, "check", "calculator", "--tasks", "6", "--repeats", "3")
    assert status == 0 and "yes" in told.out


@pytest.mark.slow
def test_a_result_that_the_program_shows_in_another_form_is_told_apart(capsys):
    _, told = command(capsys, "show", "search", "--tasks", "1")
    results = [line[11:].startswith("(as shown) ") for line in told.out.splitlines() if line.startswith("     tool")]
    assert results[:4] == [False, False, True, False] and "(pruned)" in told.out
    _, told = command(capsys, "show", "lookup", "--tasks", "1")
    assert "as shown" not in told.out


def test_what_a_sub_agent_was_shown_in_another_form_keeps_its_name(capsys, monkeypatch):
    from noria.harness.traces import story

    monkeypatch.setattr(story, "is_retold", lambda trace, place: trace.nodes[place].agent == "h0")
    _, told = command(capsys, "show", "parallel", "--tasks", "2")
    assert "\n       h0  (as shown) find" in told.out and "\n       h1  find" in told.out


def test_the_check_of_a_broken_file_exits_with_one_and_says_which_gate(capsys, tmp_path):
    path = tmp_path / "broken.py"
    path.write_text(
        textwrap.dedent("""
            from dataclasses import replace
            from noria.harness.environments.calculator import ENVIRONMENT as E
            ENVIRONMENT = replace(E, name="broken", gold=lambda task: lambda messages, seed: "no")
        """)
    )
    status, told = command(capsys, "check", str(path), "--tasks", "6", "--repeats", "3")
    assert status == 1 and "gate gold failed" in told.out
    status, told = command(capsys, "check", str(path), "--tasks", "6", "--repeats", "3", "--json")
    assert status == 1 and '"passed": false' in told.out


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("gold=lambda task: lambda messages, seed: {}[0]", "broken: a policy raised KeyError: 0"),
        ("gold=lambda task: 1 / 0", "broken: a policy raised ZeroDivisionError"),
        ("generate=lambda count, seed, split: [][0]", "broken: generate raised IndexError"),
        ("grader=lambda: int('x')", "broken: grader raised ValueError"),
        # `generate` is of another file here, so it does not tell which file this is:
        ("gold=lambda task: __import__('json').loads('{')", "a policy raised JSONDecodeError"),
        ("generate=lambda count, seed, split: __import__('json').loads('{')", "generate raised JSONDecodeError"),
    ],
)
def test_a_file_that_raises_later_is_told_of_with_its_place(capsys, tmp_path, broken, said):
    path = tmp_path / "broken.py"
    path.write_text(
        "from dataclasses import replace\nfrom noria.harness.environments.calculator import ENVIRONMENT as E\n"
        f"ENVIRONMENT = replace(E, name='broken', {broken})\n"
    )
    status, told = command(capsys, "check", str(path), "--tasks", "6", "--repeats", "3")
    assert status == 2 and said in told.err and "broken.py:3" in told.err


TASKS = "generate=lambda count, seed, split: [replace(t, {}) for t in E.generate(count, seed, split)]"


@pytest.mark.slow
@pytest.mark.parametrize("action", ["check", "show"])
@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("tools=('calc',)", "`tools`: 'calc' is a name where a tool must stand"),
        ("tools='calc'", "`tools`: must be a tuple of tools, not 'calc' (str)"),
        ("tools=(E.tools[0], E.tools[0])", "`tools`: two tools of one name among calc, calc"),
        ("program='files'", "`program` must be of type Program or None, not 'files' (str): give load_program(NAME)"),
        ("budget=4", "`budget` must be of type Budget, not 4 (int)"),
        ("cheats={'guess': '42'}", "`cheats`: guess must be a function of a task, not '42' (str)"),
        ("splits='train heldout'", "`splits` must be a tuple of names"),
        (TASKS.format("answer=42"), "`answer` must be text, not 42 (int): write str(...)"),
        (TASKS.format("hidden={**t.hidden, 'files': {'a': ['x']}}"), "`hidden['files']['a']` must be text, not ['x']"),
        (TASKS.format("hidden={**t.hidden, 'files': ['a']}"), "`hidden['files']` must be a dict of path -> text"),
        (TASKS.format("messages=t.messages[0].content"), "`messages` must be a tuple of at least one Message, not '"),
        (TASKS.format("messages=('x',)"), "`messages` must hold Message(role, text), not 'x' (str)"),
        (TASKS.format("grader='mine'"), "`grader` must be a GraderRef, not 'mine' (str): write grader().ref"),
        (TASKS.format("difficulty='hard'"), "`difficulty` must be a number from 0 to 1, not 'hard' (str)"),
        ("generate=lambda count, seed, split: None", "must return a list of tasks, not None (NoneType)"),
        ("generate=lambda count, seed, split: ['a']", "a task must be a Task, not 'a' (str)"),
        ("gold=lambda task: lambda messages, seed: 42", "replied 42 (int): a reply must be text"),
        ("reference=0.5", "`reference` must be a function, not 0.5 (float)"),
        ("subagents=SUBAGENTS, helper='h'", "`helper` must be a function, not 'h' (str)"),
        ("subagents=SUBAGENTS, helper=lambda task: {}['way']", "broken: helper raised KeyError: 'way' ("),
        ("gold=lambda task: '42'", "is '42' (str): `gold`, a cheat and `helper` must return a function"),
    ],
)  # fmt: skip
def test_a_slip_of_an_author_is_told_with_the_environment_and_the_field(capsys, tmp_path, action, broken, said):
    path = tmp_path / "broken.py"
    path.write_text(
        "from dataclasses import replace\nfrom noria.harness.environments.calculator import ENVIRONMENT as E\n"
        "from noria.harness.environments.parallel import ENVIRONMENT as P\nSUBAGENTS = P.subagents\n"
        f"ENVIRONMENT = replace(E, name='broken', {broken})\n"
    )
    status, told = command(capsys, action, str(path), "--tasks", "5")
    assert status == 2 and said in told.err and "broken" in told.err


def test_a_file_given_by_a_relative_path_is_refused_with_the_line_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("x = 1\n\ndef f():\n    raise KeyError('no')\n\nf()\n")
    with pytest.raises(EnvironmentFileError, match=r"^mine\.py:4: KeyError"):
        load_environment("mine.py")
    Path("mine.py").write_text("import json\n\njson.loads('{')\n")  # that error has a line too, of its own text
    with pytest.raises(EnvironmentFileError, match=r"^mine\.py:3: JSONDecodeError"):
        load_environment("mine.py")


def test_a_grading_that_failed_is_shown_and_exits_with_one(capsys, tmp_path):
    path = tmp_path / "crashing.py"
    path.write_text(
        "import sys\nfrom dataclasses import replace\nfrom noria.harness.trace_grader import trace_grader\n"
        "from noria.harness.environments.calculator import ENVIRONMENT as E\n"
        "def judge(task, trace):\n    raise KeyError('points')\n"
        "ENVIRONMENT = replace(E, name='crashing', grader=lambda: trace_grader('c', judge, sys.modules[__name__]))\n"
    )
    status, told = command(capsys, "show", str(path))
    assert status == 1 and "grading failed, crash: " in told.out and "KeyError: 'points'" in told.out
    status, told = command(capsys, "show", str(path), "--json")
    assert status == 1 and '"reason": "crash"' in told.out


@pytest.mark.parametrize(
    ("judge", "batch", "said"),
    [
        ("def judge(task, trace): return 1.0", False, "must return Parts or a Failure, not 1.0 (float)"),
        (
            "def judge(tasks, traces): return [1.0] * len(tasks)",
            True,
            "must return Parts or a Failure, not 1.0 (float)",
        ),
        (
            "def judge(tasks, traces): return 1.0",
            True,
            "must return a list of one Parts or Failure a trace (2), not 1.0",
        ),
        ("def judge(tasks, traces): return []", True, "must return a list of one Parts or Failure a trace (2), not []"),
    ],
)
def test_a_judge_that_returns_something_else_is_named_with_its_line(capsys, tmp_path, monkeypatch, judge, batch, said):
    monkeypatch.setenv("COLUMNS", "400")
    path = tmp_path / "floats.py"
    path.write_text(
        "import sys\nfrom dataclasses import replace\nfrom noria.harness.trace_grader import trace_grader\n"
        f"from noria.harness.environments.calculator import ENVIRONMENT as E\n{judge}\n"
        f"GRADER = trace_grader('f', judge, sys.modules[__name__], batch={batch})\n"
        "ENVIRONMENT = replace(E, name='floats', grader=lambda: GRADER)\n"
    )
    status, told = command(capsys, "show", str(path))
    assert status == 1 and told.out.count(f"grading failed, crash: judge ({path}:5) {said}") == 2


def test_each_trace_of_a_run_is_reported():
    environment, reported = load_environment("calculator"), []
    examine(environment, 5, 2, 0, lambda done, total: reported.append((done, total)))
    assert reported == [(done + 1, traces_of(environment, 5, 2)) for done in range(len(reported))]
    assert reported[-1][0] == reported[-1][1]
    reported.clear()
    made = drawn(environment, 3, 0, "train")
    with Sandbox(TOOL_LIMITS) as box:
        play(environment, Toolbox(box, environment.tools), made, 0, environment.gold, lambda *at: reported.append(at))
    assert reported == [(1, 3), (2, 3), (3, 3)]


def test_bad_use_exits_with_two(capsys):
    for arguments in (["check"], ["check", "nothing"], ["show", "lookup", "--split", "test"]):
        status, told = command(capsys, *arguments)
        assert status == 2 and told.err


@pytest.mark.slow
def test_the_example_of_the_documentation_passes_its_gates(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "environments.md").read_text(encoding="utf-8")
    (tmp_path / "total.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    found = examine(load_environment(tmp_path / "total.py"), tasks=10, repeats=4)
    assert [f"{gate.name}: {gate.evidence}" for gate in found.gates if not gate.passed] == []


def test_the_documentation_names_every_family():
    page = (Path(__file__).parents[2] / "docs" / "environments.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in page for name in environment_names())
