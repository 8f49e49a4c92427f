from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from noria.artifacts import Step, StepContext, Store, StoreError
from noria.cli import app, status_of
from noria.deployment.traffic import Retention, TrafficLog, read_replies, user_digest
from noria.inference.serving import ServedChoice, ServedRequest
from noria.types import Message

COMMANDS = ("run", "plan", "why", "lineage", "forget", "eval", "chat", "serve", "report", "doctor", "gc")
RECIPE = '[raw_data]\nlicences = ["Apache-2.0"]\nsources = []\n'


class Number(BaseModel):
    number: float


def write_number(context: StepContext) -> Mapping[str, Any]:
    context.report(1, 1, "numbers")
    (context.content / "number.txt").write_text(str(context.config.number))
    return {"number": context.config.number}


def fail(context: StepContext) -> Mapping[str, Any]:
    raise ArithmeticError("two and two made five")


def build(recipe: Any, turn: int, store: Store) -> list[Step]:
    """A chain in miniature: data, a model from it, its evaluation."""
    flops = recipe.system.flops
    data = Step("shards", "s2_data_engineering", "shards", 1, Number(number=1), write_number)
    model = Step("base_model", "s4_pretraining", "model", turn, Number(number=flops), write_number, {"shards": data})
    judged = Step("evaluate_base", "s6_evaluation", "evaluation", 1, Number(number=2), write_number, {"model": model})
    return [data, model, judged]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a recipe, a store of its own, and the chain in miniature."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NORIA_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "200")
    assembly = types.ModuleType("noria.assembly")
    assembly.build = build  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "noria.assembly", assembly)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    (tmp_path / "small.toml").write_text(RECIPE)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = status_of(arguments)
    output = capsys.readouterr()
    return status, output.out, output.err


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself_with_an_example(command: str):
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"noria {command}" in result.output.split("Example", 1)[1]


def test_help_lists_every_command_and_the_exit_codes():
    result = CliRunner().invoke(app, ["--help"])
    assert all(f"\n  {command} " in result.output for command in COMMANDS)
    assert "130 stopped by Ctrl-C" in " ".join(result.output.split())


def test_a_second_run_has_nothing_to_do(here: Path, capsys):
    status, out, _ = told(capsys, "run", "small.toml")
    assert status == 0 and "3 of 3 steps made" in out and "2 data engineering: shards made" in out
    status, out, _ = told(capsys, "run", "small.toml")
    assert status == 0 and "nothing to do: all 3 steps of small are made" in out


def test_plan_names_the_field_and_exactly_the_steps_below_it(here: Path, capsys):
    told(capsys, "run", "small.toml")
    status, out, _ = told(capsys, "plan", "small.toml", "--set", "system.flops=1e9", "--json")
    steps = {step["name"]: step for step in json.loads(out)["steps"]}
    assert status == 0
    assert {name: step["action"] for name, step in steps.items()} == {
        "shards": "reuse",
        "base_model": "run",
        "evaluate_base": "run",
    }
    assert steps["base_model"]["changes"] == [{"field": "config.number", "old": 6e12, "new": 1e9}]
    _, out, _ = told(capsys, "plan", "small.toml", "--set", "system.flops=1e9")
    assert "config.number" in out and "2 of 3 steps would run" in out
    assert "last time" in out and "they took" in out


def test_plan_of_what_was_never_made_claims_no_time(here: Path, capsys):
    _, out, _ = told(capsys, "plan", "small.toml")
    assert "last time" not in out and "took" not in out


def test_only_and_from_choose_steps_by_stage_or_name(here: Path, capsys):
    assert "1 of 1 steps made" in told(capsys, "run", "small.toml", "--only", "2")[1]
    assert "2 of 2 steps made" in told(capsys, "run", "small.toml", "--from", "pretraining")[1]
    assert "nothing to do: all 1 steps" in told(capsys, "run", "small.toml", "--only", "evaluate_base")[1]


def test_a_stage_that_is_not_there_names_the_nearest(here: Path, capsys):
    status, _, err = told(capsys, "run", "small.toml", "--only", "pretrainig")
    assert status == 2 and "Did you mean pretraining?" in err and not (here / "store").exists()


def test_only_a_later_stage_says_what_is_missing(here: Path, capsys):
    status, _, err = told(capsys, "run", "small.toml", "--only", "evaluation")
    assert status == 1 and "needs base_model" in err


def test_a_turn_is_another_run(here: Path, capsys):
    told(capsys, "run", "small.toml")
    assert "2 of 3 steps made" in told(capsys, "run", "small.toml", "--turn", "2")[1]


def test_a_wrong_recipe_exits_with_2_before_any_work(here: Path, capsys):
    status, _, err = told(capsys, "run", "small.toml", "--set", "system.flopz=1", "--set", "run.seed=-1")
    assert status == 2 and "did you mean flops?" in err and "run.seed" in err
    assert not (here / "store").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("bogus",),
        ("run",),
        ("run", "small.toml", "--turn", "0"),
        ("run", "small.toml", "--turn", "2", "--traffic", "nothing.sqlite"),
        ("forget", "x", "y"),
        ("forget", "user", ""),
    ],
)
def test_bad_use_exits_with_2(here: Path, capsys, arguments: tuple[str, ...]):
    status, _, err = told(capsys, *arguments)
    assert status == 2 and "Traceback" not in err and err


def test_a_failing_step_exits_with_1_and_one_message(here: Path, capsys, monkeypatch):
    broken = [Step("broken", "s4_pretraining", "model", 1, Number(number=1), fail)]
    monkeypatch.setattr(sys.modules["noria.assembly"], "build", lambda *_: broken)
    status, _, err = told(capsys, "run", "small.toml")
    assert status == 1 and err == "noria: step broken failed: ArithmeticError: two and two made five\n"


def test_require_release_exits_with_3_where_nothing_is_released(here: Path, capsys):
    assert told(capsys, "run", "small.toml", "--require-release")[0] == 3


def test_version_is_shown():
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0 and result.output.startswith("noria")


def test_turn_2_of_another_recipe_says_that_turn_1_was_made_with_other_settings(tmp_path: Path):
    from noria.assembly import build as real_build
    from noria.recipe import load

    recipe = load(Path(__file__).parents[1] / "recipes" / "nano.toml")
    with pytest.raises(StoreError, match=r"with this recipe and these --set, turn 1 .* `noria plan RECIPE --turn 1`"):
        real_build(recipe, 2, Store(tmp_path / "store"))


def test_lineage_refuses_options_that_it_would_ignore(here: Path, capsys):
    told(capsys, "run", "small.toml")
    for options in (("--user", "--upstream"), ("--downstream", "--document", "x"), ("--user", "--records", "3")):
        status, out, err = told(capsys, "lineage", "base_model", *options)
        assert status == 2 and not out and "--user" in err
    status, _, err = told(capsys, "lineage", "books")
    assert status == 2 and "if books is a source, add --downstream" in err.lower()


@pytest.mark.parametrize(
    "arguments",
    [
        ("why", "x"),
        ("lineage", "x"),
        ("lineage", "x", "--user"),
        ("forget", "source", "x"),
        ("gc",),
        ("report",),
        ("chat",),
    ],
)
def test_a_mistyped_store_is_no_empty_one(here: Path, capsys, arguments: tuple[str, ...]):
    status, out, err = told(capsys, *arguments, "--store", "stoer")
    assert status == 2 and not out and f"no store at {here / 'stoer'}" in err
    status, out, err = told(capsys, *arguments, "--store", "small.toml")
    assert status == 2 and not out and "is a file, not a folder" in err
    assert not (here / "stoer").exists()


def test_an_address_of_another_machine_is_blamed_on_host_not_on_port(here: Path, capsys):
    (here / "model").mkdir()
    (here / "model" / "config.json").write_text("{}")
    status, _, err = told(capsys, "serve", "model", "--host", "203.0.113.7", "--port", "0")
    assert status == 1 and "give --host an address of this machine" in err and "--port" not in err


def test_plan_says_that_there_is_no_store_yet(here: Path, capsys):
    status, out, _ = told(capsys, "plan", "small.toml")
    assert status == 0 and f"no store at {here / 'store'} yet" in out


def test_report_refuses_a_folder_as_its_file_and_leaves_nothing_there(here: Path, capsys):
    told(capsys, "run", "small.toml")
    (here / "folder").mkdir()
    status, _, err = told(capsys, "report", "--out", "folder")
    assert status == 2 and "is a folder; name a file in it" in err
    assert told(capsys, "report", "--out", "small.toml/r.html")[0] == 2
    assert {path.name for path in here.iterdir()} == {"store", "small.toml", "folder"}
    assert told(capsys, "report", "--out", "new/r.html")[0] == 0 and (here / "new" / "r.html").is_file()


def test_why_and_lineage_tell_where_an_artifact_comes_from(here: Path, capsys):
    told(capsys, "run", "small.toml")
    status, out, _ = told(capsys, "why", "base_model")
    assert status == 0 and "config.number" in out and "made (first time)" in out
    status, out, _ = told(capsys, "lineage", "evaluate_base", "--json")
    assert [node["manifest"]["step"] for node in json.loads(out)["artifacts"]] == [
        "evaluate_base",
        "base_model",
        "shards",
    ]
    status, out, _ = told(capsys, "lineage", "shards", "--downstream", "--json")
    assert {manifest["step"] for manifest in json.loads(out)["artifacts"]} == {"base_model", "evaluate_base"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("why", "nothing"),
        ("lineage", "nothing"),
        ("lineage", "nothing", "--downstream"),
        ("forget", "source", "nothing"),
        ("eval", "nothing"),
        ("chat",),
        ("serve",),
        ("eval", "small.toml"),
        ("report", "nothing"),
    ],
)
def test_an_unknown_name_is_one_message(here: Path, capsys, arguments: tuple[str, ...]):
    status, out, err = told(capsys, *arguments)
    assert status == 2 and out == "" and err.startswith("noria: ") and "Traceback" not in err


def test_a_user_is_found_by_the_name_that_requests_gave(here: Path, capsys):
    (here / "traffic.jsonl").write_text(json.dumps({"user": user_digest("jane")}) + "\n")
    imported = Store(here / "store").import_content("traffic", here / "traffic.jsonl")
    for name in ("jane", user_digest("jane")):
        status, out, _ = told(capsys, "lineage", name, "--downstream", "--user", "--json")
        assert status == 0 and imported.key in out
        status, out, _ = told(capsys, "forget", "user", name, "--json")
        assert status == 0 and imported.key in out
    status, _, err = told(capsys, "lineage", "eve", "--user")
    assert status == 2 and "holds the user 'eve'" in err
    status, _, err = told(capsys, "forget", "user", "eve")
    assert status == 2 and "holds the user 'eve'" in err


def log_requests(path: Path, *users: str) -> None:
    log = TrafficLog(path, "policy", lambda text: (text, {}), clock=lambda: 0.0, retention=Retention(days=1e6))
    for number, user in enumerate(users):
        asked, answered = (Message("user", "may I?"),), (ServedChoice("yes", (1,), (0.0,), "stop"),)
        log.record(ServedRequest(f"r{number}", user, "train", asked, {}, 3, answered, 0.1))
    log.close()


def test_forgetting_a_user_counts_the_rows_of_the_live_log_and_deletes_them_on_demand(here: Path, capsys):
    log = here / "store" / "traffic.sqlite"
    log_requests(log, "jane", "bob", "jane")
    status, out, _ = told(capsys, "forget", "user", "jane")
    assert status == 0 and "jane reached no artifact" in out and "holds 2 requests of jane; --delete-rows" in out
    assert len(read_replies(log)) == 3
    status, out, _ = told(capsys, "forget", "user", "jane", "--delete-rows")
    assert status == 0 and "2 requests of jane deleted" in out
    assert [row.user for row in read_replies(log)] == [user_digest("bob")], "other rows stay, however old"
    assert told(capsys, "forget", "user", user_digest("bob"), "--delete-rows")[0] == 0 and not read_replies(log)
    status, _, err = told(capsys, "forget", "user", "jane")
    assert status == 2 and "'jane'" in err and str(log) in err
    assert told(capsys, "forget", "source", "books", "--delete-rows")[0] == 2


def test_gc_shows_first_and_deletes_on_demand(here: Path, capsys):
    told(capsys, "run", "small.toml")
    told(capsys, "run", "small.toml", "--set", "system.flops=1e9")
    status, out, _ = told(capsys, "gc", "--json")
    assert status == 0 and len(json.loads(out)["garbage"]) == 2
    assert "nothing was deleted" in told(capsys, "gc")[1]
    assert "Freed" in told(capsys, "gc", "--apply")[1]
    assert "Nothing can go" in told(capsys, "gc")[1]


def test_gc_keeps_a_finished_run_after_one_of_a_single_stage(here: Path, capsys):
    told(capsys, "run", "small.toml")
    told(capsys, "run", "small.toml", "--only", "evaluation")
    told(capsys, "run", "small.toml", "--only", "4", "--set", "system.flops=1e9")
    told(capsys, "run", "small.toml", "--only", "2")
    told(capsys, "gc", "--apply")
    assert "nothing to do: all 3 steps" in told(capsys, "run", "small.toml")[1]


def test_doctor_reports_every_fact_as_json(here: Path, capsys):
    status, out, _ = told(capsys, "doctor", "--json")
    facts = {fact["name"]: fact for fact in json.loads(out)}
    assert {"python", "cores", "memory", "disk", "sandbox", "torch", "accelerator", "compiler", "browser"} <= set(facts)
    assert status == any(fact["status"] == "bad" for fact in facts.values())


SLOW_CHAIN = """
    import signal, sys, time, types
    from pydantic import BaseModel

    # As in a terminal, whoever started the tests: a shell gives its background jobs an ignored SIGINT to inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    from noria.artifacts import Step

    class Nothing(BaseModel):
        pass

    def wait(context):
        (context.progress / "begun").touch()
        for _ in range(2000):
            time.sleep(0.01)
        return {}

    assembly = types.ModuleType("noria.assembly")
    assembly.build = lambda *_: [Step("slow", "s4_pretraining", "model", 1, Nothing(), wait)]
    sys.modules["noria.assembly"] = assembly
    from noria.cli import main
    main(["run", "small.toml"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_how_to_go_on_and_exits_with_130(here: Path, how: signal.Signals):
    command = [sys.executable, "-c", textwrap.dedent(SLOW_CHAIN)]
    process = subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "slow running" in line, line + process.stderr.read()  # type: ignore[union-attr]
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "run the same command again" in err and "Traceback" not in err


def test_the_module_and_its_exit_code(tmp_path: Path):
    (tmp_path / "wrong.toml").write_text(RECIPE + "[run]\nseeed = 1\n")
    environment = {**os.environ, "NORIA_STORE": str(tmp_path / "store")}
    command = [sys.executable, "-m", "noria", "plan", "wrong.toml"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert (
        done.stderr == "noria: wrong.toml:5; run.seeed; found the unknown name seeed; allowed: name, seed, threads; "
        "did you mean seed?\n"
    )


def test_commands_and_recipes_load_without_the_heavy_libraries():
    heavy = ["torch", "scipy", "sympy", "reasoning_gym", "starlette"]
    code = f"import sys, noria.cli, noria.recipe, noria.studio.live; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["--help"], ["env", "list"], ["env", "show", "calculator"], ["mcp", "serve", "--tools", "files"]]
)
def test_commands_that_compute_nothing_do_without_torch(tmp_path: Path, arguments: list[str]):
    code = f"import sys, noria.cli as c; print(c.status_of({arguments}), 'torch' in sys.modules, file=sys.stderr)"
    assert last_word(tmp_path, code) == "0 False"


def test_the_harness_is_imported_without_what_only_some_of_its_tools_need(tmp_path: Path):
    named = "{'torch', 'scipy', 'pyarrow'} & set(sys.modules)"
    assert last_word(tmp_path, f"import sys, noria.harness; print({named} or 'none', file=sys.stderr)") == "none"


def last_word(folder: Path, code: str) -> str:
    """The last line that a new interpreter says on standard error."""
    given = {"cwd": folder, "stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", code], **given, check=True)  # type: ignore[call-overload]
    return done.stderr.splitlines()[-1]
