from __future__ import annotations

from pathlib import Path

import pytest

from noria.recipe import load
from noria.recipe_errors import Problem, RecipeError

MINIMAL = '[raw_data]\nlicences = ["Apache-2.0"]\nsources = []\n'


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "small.toml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def problems(path: Path, *overrides: str) -> tuple[Problem, ...]:
    with pytest.raises(RecipeError) as caught:
        load(path, overrides)
    return caught.value.problems


def test_a_recipe_takes_its_name_from_its_file_and_defaults_from_its_stages(write):
    recipe = load(write(MINIMAL))
    assert recipe.run.name == "small" and recipe.run.seed == 0
    assert recipe.system.parameters == "auto"


def test_all_that_is_wrong_is_said_at_once_with_file_line_and_nearest_name(write):
    path = write(MINIMAL + "[system]\nflop = 1e12\nmin_parameters = -3\n[pretraining]\nlearning_rate = 'fast'\n")
    found = {problem.field: problem for problem in problems(path)}
    assert set(found) == {"system.flop", "system.min_parameters", "pretraining.learning_rate"}
    assert found["system.flop"].nearest == "flops" and found["system.flop"].line == 5
    assert "-3" in found["system.min_parameters"].found and ">= 1" in found["system.min_parameters"].allowed
    assert 'a number or "auto"' in found["pretraining.learning_rate"].allowed
    assert f"{path}:8" in str(found["pretraining.learning_rate"])


def test_a_union_gives_one_problem(write):
    assert len(problems(write(MINIMAL + "[system]\nparameters = 1.5\n"))) == 1


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("seed = '3'", '"3" (text)'),
        ("seed = 1.5", "1.5 (number)"),
        ("seed = true", "true (true/false)"),
        ("seed = 2026-01-01", "2026-01-01"),
        ("threads = 0", "0 (whole number)"),
    ],
)
def test_types_are_strict(write, text: str, found: str):
    (problem,) = problems(write(MINIMAL + f"[run]\n{text}\n"))
    assert problem.found == found and problem.line == 5


@pytest.mark.parametrize("rate", ["0.0", "-0.01", "5"])
def test_a_learning_rate_out_of_range_is_refused_before_any_work(write, rate: str):
    (problem,) = problems(write(MINIMAL + f"[pretraining]\nlearning_rate = {rate}\n"))
    assert problem.field == "pretraining.learning_rate" and problem.line == 5 and "(0, 1]" in str(problem)


@pytest.mark.parametrize(
    "override",
    [
        "deployment.verdict.primary=corect",
        "deployment.verdict.guardrails=[{metric='harmful'}]",
        "data.weights.crwl=0.1",
        "raw_data.synthetic.families.adition=10",
    ],
)
def test_a_name_that_a_late_stage_would_not_know_is_refused_before_any_work(write, override: str):
    (problem,) = problems(write(MINIMAL), override)
    assert override.startswith(problem.field.removesuffix(".metric"))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.weights={crawl=0.5, books=-0.1}", "books is below"),
        ("data.weights={crawl=0, books=0.0}", "no kind has a weight above 0"),
        ("data.weights={traffic=1.0}", "the first turn has none"),
        ("raw_data.synthetic.families={adition=10}", "did you mean addition?"),
        ("raw_data.synthetic.families={zzz=10}", "there are addition, subtraction"),
    ],
)
def test_a_value_on_which_a_stage_would_fail_is_refused_with_a_sentence(write, override: str, said: str):
    (problem,) = problems(write(MINIMAL), override)
    assert problem.field == override.split("=")[0] and said in problem.found


def test_more_threads_than_cores_are_a_warning_and_no_error(write, capsys, monkeypatch):
    monkeypatch.setattr("noria.recipe.cores", lambda: 2)
    assert load(write(MINIMAL), ["run.threads=3"]).run.threads == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "run.threads is 3" in line and "slower" in line
    load(write(MINIMAL), ["run.threads=2"])
    assert capsys.readouterr().err == ""


def test_infinity_is_no_number(write):
    (problem,) = problems(write(MINIMAL + "[system]\nflops = inf\n"))
    assert problem.allowed == "a finite number" and problem.line == 5


def test_a_whole_number_may_stand_for_a_real_one(write):
    assert load(write(MINIMAL + "[system]\nflops = 5000000\n")).system.flops == 5e6


def test_an_unknown_section_names_the_nearest(write):
    (problem,) = problems(write(MINIMAL + "[pretrainig]\nlearning_rate = 0.1\n"))
    assert problem.nearest == "pretraining" and problem.line == 4


def test_a_contradiction_in_a_section_is_said_by_the_section(write):
    (problem,) = problems(write(MINIMAL + "[system]\nflops = 1e9\nparameters = 1000000\ntrain_tokens = 1000000\n"))
    assert problem.field == "system" and "raise flops" in problem.found


def test_overrides_are_toml_values_or_bare_text(write):
    path = write(MINIMAL)
    recipe = load(path, ["run.seed=7", "system.parameters='auto'", "run.name=mine", "system.ladder_widths=[32, 64]"])
    assert recipe.run.seed == 7 and recipe.run.name == "mine" and recipe.system.ladder_widths == (32, 64)


def test_a_wrong_override_is_named_as_such(write):
    (problem,) = problems(write(MINIMAL), "system.flopz=1e12")
    assert problem.file == "--set system.flopz=1e12" and problem.nearest == "flops"
    assert [p.found for p in problems(write(MINIMAL), "nonsense", "=1", "run=1")] == ["nonsense", "=1", "run=1"]


@pytest.mark.parametrize(
    "override", ["pretrainig.learning_rate=0.1", "run.seed.x=1", "data.weights='x'", "system.train_tokens=1000000"]
)
def test_a_wrong_override_is_not_blamed_on_a_line_of_the_recipe(write, override: str):
    path = write(
        MINIMAL + "[system]\nflops = 1e9\nparameters = 1000000\n[run]\nseed = 1\n[data]\nweights = {books = 1.0}\n"
    )
    (problem,) = problems(path, override)
    assert str(problem).startswith(f"--set {override}; ")


def test_an_error_of_the_recipe_is_not_blamed_on_an_override_beside_it(write):
    path = write(MINIMAL + "[system]\nflops = 1e9\nparameters = 1000000\ntrain_tokens = 1000000\n")
    (problem,) = problems(path, "system.bootstrap=30")
    assert (problem.file, problem.line) == (str(path), 4)


def test_an_item_of_a_list_is_not_for_set(write):
    (problem,) = problems(write(MINIMAL), "raw_data.sources.0.licence=MIT")
    assert problem.found == "a list" and "--set can't change one item" in problem.allowed


def test_extends_changes_single_fields_and_takes_a_name_of_its_own(write):
    write(MINIMAL + "[run]\nname = 'base'\nseed = 4\n[system]\nflops = 2e12\nbootstrap = 30\n", "base.toml")
    recipe = load(write('extends = "base.toml"\n[system]\nflops = 1e12\n', "child.toml"))
    assert (recipe.run.name, recipe.run.seed) == ("child", 4)
    assert (recipe.system.flops, recipe.system.bootstrap) == (1e12, 30)


def test_an_error_in_an_extended_file_is_found_there(write):
    base = write(MINIMAL + "[system]\nflops = -1\n", "base.toml")
    (problem,) = problems(write('extends = "base.toml"\n', "child.toml"))
    assert (problem.file, problem.line) == (str(base), 5)


def test_extends_in_a_circle_is_refused(write):
    write('extends = "b.toml"\n', "a.toml")
    (problem,) = problems(write('extends = "a.toml"\n', "b.toml"))
    assert problem.field == "extends" and "a.toml" in problem.found


def test_files_that_are_no_recipe_are_refused(write, tmp_path: Path):
    assert problems(tmp_path / "none.toml")[0].allowed == "a readable TOML file"
    assert problems(write("[run\n"))[0].line == 1
    (tmp_path / "latin.toml").write_bytes(b'[run]\nname = "caf\xe9"\n')
    assert "UTF-8" in problems(tmp_path / "latin.toml")[0].found
