"""`noria traces` as a user has it: what is printed, what --json gives, which exit code tells what."""

from __future__ import annotations

import itertools
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from noria.cli import app, status_of
from noria.data.tokenizer import train_tokenizer
from noria.harness import Arena, Endpoint, EndpointPolicy, ScriptedSampler, load_program, rollout
from noria.harness.bootstrap import bootstrapped
from noria.harness.endpoint import read_reply
from noria.harness.environments import lookup
from noria.harness.policy import ModelFailed
from noria.harness.traces import Entry, Library, TraceWriter, load
from noria.harness.traces.log import MARK
from noria.studio.traces.place import Given, NotKnown, Place, program_of
from tests.harness.made_up_traces import entry, with_sub_agents
from tests.inference.imported_model import TAGS, write_tokenizer

OWN = replace(load_program("plain"), name="mine")  # a program that comes with no noria


@pytest.fixture(scope="module")
def rolled(tmp_path_factory) -> Path:
    """Real rollouts in a folder, with the tokenizer beside them."""
    folder = tmp_path_factory.mktemp("rolled")
    tokenizer = train_tokenizer([f"find see value read list error invalid {' '.join(lookup.WORDS)}"] * 10, 400)
    tokenizer.save(folder / "tokenizer.json")
    environment = lookup.ENVIRONMENT
    tasks, grader = environment.generate(6, 0, "train"), environment.grader()
    with Arena(load_program("files"), tokenizer, grader, environment.tools, 5, 12) as arena:
        recorded = arena.record(tasks, 0, ScriptedSampler(tokenizer, lookup.hasty(0.7)), 256)
    with TraceWriter(folder) as writer:
        writer.append(recorded.entries(step=1))
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["traces", *map(str, arguments)], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done.return_value or 0, done.output


def test_a_program_or_place_that_is_not_there_is_bad_use_and_told(rolled, tmp_path, capsys):
    assert status_of(["traces", "replay", str(rolled), "--program", "nosuch"]) == 2
    told = capsys.readouterr().err
    assert "no harness program 'nosuch': give a .py file, or one of" in told and "planner" in told and "/" not in told
    bad = ["--program", "nosuch", "--environment", "none", "--tokenizer", str(tmp_path)]
    for place in (str(rolled), str(tmp_path / "gone")):  # all at once, and before anything is read
        for action in ("replay", "reexecute"):
            assert status_of(["traces", action, place, *bad]) == 2
            told = capsys.readouterr().err
            assert "harness program 'nosuch'" in told and "environment 'none'" in told and "no tokenizer" in told
    assert status_of(["traces", "regrade", str(tmp_path / "gone"), "--environment", "none"]) == 2
    assert "no environment 'none'" in capsys.readouterr().err
    assert status_of(["traces", "list", str(tmp_path / "gone")]) == 2
    assert f"there is no folder {tmp_path / 'gone'}" in capsys.readouterr().err


def test_a_list_is_filtered_and_sorted_and_json_has_the_total(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with TraceWriter(tmp_path / "run") as writer:
        writer.append(entry(number, number % 4 / 3, step=number) for number in range(40))
    code, text = run("list", "run", "--family", "odd", "--limit", 3)
    assert (
        code == 0
        and "3 of 20 traces; # is the number that the other commands take" in text
        and "find the value of key1" in text
    )
    options = ("--score-min", 0.5, "--order", "step", "--falling", "--limit", 2, "--page", 2, "--json")
    found = json.loads(run("list", "run", *options)[1])
    assert found["total"] == 20 and [row["step"] for row in found["traces"]] == [35, 34]
    assert json.loads(run("list", "run", "--text", "needle7", "--step", 7, "--json")[1])["total"] == 1


def test_bad_use_is_told(tmp_path, capsys):
    TraceWriter(tmp_path / "run").close()
    assert status_of(["traces", "list", "run", "--order", "colour"]) == 2
    assert status_of(["traces", "show", "run", "5"]) == 2 and "no trace number 5" in capsys.readouterr().err
    assert status_of(["traces", "list", "nowhere"]) == 2 and "nowhere" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert status_of(["traces", "list", "empty"]) == 2 and "holds no traces" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "known"),
    [
        ("--outcome", "finnished", "there are: aborted, context_limit, finished"),
        ("--family", "evn", "there are: even, odd"),
        ("--tool", "raed", "there are: read, search"),
        ("--harness", "made-up", "there are: made-up@1"),
        ("--status", "good", "there are: failed, graded, none"),
    ],
)
def test_a_misspelt_filter_is_refused_with_the_known_values(tmp_path, capsys, option, value, known):
    with TraceWriter(tmp_path / "run") as writer:
        writer.append(entry(number) for number in range(4))
    assert status_of(["traces", "list", "run", option, value]) == 2
    told = " ".join(capsys.readouterr().err.replace("│", "").split())
    assert f"{value!r}; {known}" in told
    if option in ("--outcome", "--family"):
        assert status_of(["traces", "replay", "run", option, value]) == 2
        assert status_of(["traces", "regrade", "run", option, value]) == 2
        assert status_of(["traces", "export", "run", "out", option, value]) == 2 and not (tmp_path / "out").exists()


def test_an_outcome_that_no_trace_has_finds_nothing(tmp_path):
    with TraceWriter(tmp_path / "run") as writer:
        writer.append([entry(1)])
    assert json.loads(run("list", "run", "--outcome", "aborted", "--json")[1])["total"] == 0


def test_what_cannot_be_read_is_told_by_an_export_and_its_exit_code(tmp_path):
    with TraceWriter(tmp_path / "run") as writer:
        writer.append([entry(1)])
        writer.append([entry(2)])
    path = tmp_path / "run" / "traces.blocks"
    path.write_bytes(path.read_bytes()[:-4])
    code, text = run("export", "run", "out")
    assert code == 1 and "1 trace" in text and "left out:" in text and "torn" in text
    assert run("export", "run", "one.html", "--format", "html", "--trace", 1)[0] == 0


def test_a_tokenizer_that_is_none_is_told(rolled, tmp_path, capsys):
    (tmp_path / "words.json").write_text("[1]")
    (tmp_path / "model").mkdir()
    for name in ("tokenizer_config.json", "tokenizer.json"):
        (tmp_path / "imported").mkdir(exist_ok=True)
        (tmp_path / "imported" / name).write_text("{}")
    for path in ("words.json", "model", "imported"):
        assert status_of(["traces", "replay", str(rolled), "--tokenizer", path]) == 2
        assert "--tokenizer" in capsys.readouterr().err
    shown = ["traces", "show", str(rolled), "1", "--tokens", "--tokenizer", "words.json"]
    assert status_of(shown) == 2 and "words.json" in capsys.readouterr().err


def test_the_tokenizer_of_an_imported_model_is_taken(rolled, tmp_path):
    write_tokenizer(tmp_path / "model", TAGS)
    code, text = run("replay", rolled, "--tokenizer", "model")
    assert code == 1 and "0 of 6 traces replay exactly" in text  # they were sampled with another


def test_a_trace_is_shown_without_control_characters(tmp_path):
    one = with_sub_agents()
    nodes = (replace(one.trace.nodes[0], message=replace(one.trace.nodes[0].message, content="\x1b[2J\udcff here")),)
    with TraceWriter(tmp_path / "run") as writer:
        writer.append([one, Entry(replace(one.trace, id="control", nodes=nodes))])
    code, text = run("show", "run", "sub-agents")
    assert code == 0 and "result of assign_task" in text and "reply of bob" in text and "turns -0.500" in text
    text = run("show", "run", "control")[1]
    assert "\x1b" not in text and "\\x1b[2J\\xdcff here" in text
    assert json.loads(run("show", "run", 1, "--json")[1])["trace"]["id"] == "sub-agents"


def test_traces_that_fail_alike_are_told_once_with_their_numbers(rolled):
    code, text = run("replay", rolled, "--program", "plain")
    told = " ".join(text.split())
    assert code == 1 and told.startswith("6 times alike, in #1, #2, #3, ...; the first: trace ")
    assert told.count("this is plain@") == 1 and told.endswith("0 of 6 traces replay exactly")
    assert len(json.loads(run("replay", rolled, "--program", "plain", "--json")[1])["mismatches"]) == 6
    assert run("replay", rolled, "--program", "plain", "--trace", 2)[1].startswith("#2: trace ")


def test_kinds_of_failures_that_are_not_told_are_counted(capsys):
    from noria.cli.traces_again import KINDS, _tell_alike

    words = ["".join(letters) for letters in itertools.product("xyz", repeat=3)]  # without digits, so all differ
    _tell_alike([(number, f"no {word}") for number, word in enumerate(words)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[KINDS:] == [f"and {len(words) - KINDS} more kinds; --json has all"]
    _tell_alike([(number, f"no {word}") for number, word in enumerate(words[:KINDS])])
    assert len(capsys.readouterr().out.splitlines()) == KINDS


@pytest.mark.slow
def test_real_rollouts_replay_execute_again_and_grade_alike(rolled, tmp_path):
    code, text = run("replay", rolled)
    assert code == 0 and "6 of 6 traces replay exactly" in text
    found = json.loads(run("reexecute", rolled, "--json")[1])
    assert found["traces"] == 6 and found["equal"] > 6 and found["differs"] == found["failed"] == found["off_tape"] == 0
    assert run("regrade", rolled)[0] == 0
    code, text = run("replay", rolled, "--turns", 1)
    assert code == 1 and "#1" in text
    code, text = run("replay", rolled, "--trace", 2, "--program", "plain")
    assert code == 1 and "0 of 1" in text
    tokenizer = rolled / "tokenizer.json"
    shutil.copytree(rolled, tmp_path / "torn")
    with (tmp_path / "torn" / "traces.blocks").open("ab") as file:
        file.write(MARK + b"cut")
    for command in ("replay", "reexecute", "regrade"):
        code, text = run(command, "torn")
        assert code == 1 and "left out:" in text and "torn" in text
    assert json.loads(run("regrade", "torn", "--json")[1])["damages"]
    assert run("replay", "torn", "--trace", 2, "--tokenizer", tokenizer)[0] == 0  # this one was read


def test_a_program_is_that_of_the_version_which_the_trace_recorded(rolled, tmp_path, capsys):
    shutil.copytree(rolled, tmp_path / "run")
    (tmp_path / "run" / "program.py").write_text(load_program("plain").source)
    assert run("replay", "run")[0] == 0  # noria's own `files`, though another program lies in the folder
    with Library(rolled) as library, TraceWriter(tmp_path / "other") as writer:
        one = library.entry(1)
        writer.append([replace(one, trace=replace(one.trace, harness="mine@0123456789ab"))])
    told = ["traces", "replay", "other", "--tokenizer", str(rolled)]
    assert status_of(told) == 2 and "mine@0123456789ab" in (message := capsys.readouterr().err)
    assert "--program" in message


@pytest.mark.parametrize("recorded", ["mine", "mine+bootstrap"])
@pytest.mark.parametrize("has", ["mine", "mine+bootstrap"])
def test_a_program_of_the_environments_own_is_found_with_and_without_the_bootstrap(tmp_path, recorded, has):
    made = {program.name: program for program in (OWN, bootstrapped(OWN))}
    label = made[recorded].label
    one = replace(entry(1), trace=replace(entry(1).trace, harness=label))
    environment, place = replace(lookup.ENVIRONMENT, program=made[has]), Place(tmp_path, "run")
    if (recorded, has) == ("mine", "mine+bootstrap"):
        with pytest.raises(NotKnown, match="--program"):
            program_of(one, place, Given(), environment)
    else:
        assert program_of(one, place, Given(), environment).label == label


def test_the_replies_of_an_endpoint_replay_without_a_tokenizer(tmp_path):
    environment = lookup.ENVIRONMENT
    *tasks, unlucky = environment.generate(3, 0, "train")
    program = load_program("plain")

    class Canned(EndpointPolicy):
        def reply(self, turns):
            usage = {"prompt_tokens": 5, "completion_tokens": 1}
            raw = json.dumps({"choices": [{"message": {"content": "7"}}], "usage": usage}).encode()
            return [ModelFailed("status 500") if turn.task is unlucky else read_reply(raw, "m") for turn in turns]

    tasks = [unlucky, *tasks]  # one that has no reply at all
    with Canned(Endpoint("http://localhost:1/v1", "m")) as policy:
        traces = rollout(tasks, [1, 2, 3], policy, None, program, budget=environment.budget)
    assert [trace.outcome for trace in traces] == ["model_error", "finished", "finished"]
    with TraceWriter(tmp_path / "run") as writer:
        writer.append(Entry(trace, task) for trace, task in zip(traces, tasks, strict=True))
    assert "3 of 3 traces replay exactly" in run("replay", "run")[1]


@pytest.mark.slow
def test_regrading_says_what_changed_and_writes_the_new_scores(rolled, tmp_path):
    with Library(rolled) as library, TraceWriter(tmp_path / "wrong") as writer:
        entries = [one for _, one in library.entries()]
        wrong = replace(entries[0], score=replace(entries[0].score, value=1.0 - entries[0].score.value))
        writer.append([wrong, *entries[1:]])
    code, text = run("regrade", "wrong", "--out", "right")
    assert code == 1 and "#1:" in text and "5 of 6 traces have the same score" in text
    assert load(tmp_path / "right").scores == tuple(one.score for one in entries)


def test_what_is_not_known_names_the_option_that_tells_it(tmp_path, capsys):
    with TraceWriter(tmp_path / "run") as writer:
        writer.append([entry(1)])
    assert status_of(["traces", "replay", "run"]) == 2 and "--tokenizer" in capsys.readouterr().err
    assert status_of(["traces", "regrade", "run"]) == 2 and "--environment" in capsys.readouterr().err


def test_exports_are_written_in_each_format(tmp_path):
    with TraceWriter(tmp_path / "run") as writer:
        writer.append([with_sub_agents(), entry(1)])
    assert run("export", "run", "atif")[0] == 0
    files = sorted((tmp_path / "atif").iterdir())
    assert [json.loads(path.read_text())["schema_version"] for path in files] == ["ATIF-v1.7"] * 2
    assert run("export", "run", "log.eval", "--format", "inspect")[0] == 0
    assert "header.json" in zipfile.ZipFile(tmp_path / "log.eval").namelist()
    assert run("export", "run", "lines", "--format", "jsonl")[0] == 0
    assert load(tmp_path / "lines") == load(tmp_path / "run")
    assert run("export", "run", "one.html", "--format", "html", "--trace", 1)[0] == 0
    assert "<script>" in (tmp_path / "one.html").read_text()
    assert status_of(["traces", "export", "run", "two.html", "--format", "html"]) == 2
    assert status_of(["traces", "export", "run", "lines"]) == 2
