"""noria rft on a tiny model: what is wrong is said before compute is spent; what is right gives a model and proof."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from noria.cli import status_of
from noria.cli.app import BAD_USE, FAILED, NOT_RELEASED, OK
from tests.tiny_model import write_tiny_model

EXACT = {
    "type": "string_check",
    "name": "exact",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
}
FUZZY = {
    "type": "text_similarity",
    "name": "near",
    "evaluation_metric": "fuzzy_match",
    "pass_threshold": 0.5,
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
}


def python(body: str) -> dict[str, Any]:
    return {"type": "python", "name": "own", "source": f"def grade(sample, item):\n    {body}\n"}


class Job:
    """A folder with a model, tasks and a grader, and the command line that uses them."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self.tasks([{"prompt": f"say {word} fox", "answer": f"{word} fox"} for word in words(50)])
        self.grader(FUZZY)

    def tasks(self, rows: list[Any], name: str = "tasks.jsonl") -> Path:
        path = self.folder / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    def grader(self, body: Any) -> None:
        (self.folder / "grader.json").write_text(json.dumps(body))

    def run(self, *more: str) -> int:
        small = ["--steps", "2", "--prompts", "2", "--group", "4", "--max-tokens", "4", "--learning-rate", "0.001"]
        small += ["--precision", "float32"]  # the same on every processor
        files = ["--tasks", str(self.folder / "tasks.jsonl"), "--grader", str(self.folder / "grader.json")]
        out = ["--out", str(self.folder / "out")]
        return status_of(["rft", "--model", str(self.model), *files, *out, *small, *more])


def words(count: int) -> list[str]:
    return [f"{chr(97 + index % 26)}{chr(97 + index // 26)}" for index in range(count)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "model", context=96, activation="swiglu")


@pytest.fixture
def job(tmp_path: Path, model: Path) -> Job:
    return Job(tmp_path, model)


@pytest.mark.slow
def test_a_task_file_and_a_grader_give_a_model_a_report_and_proof(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.run("--json") in (OK, NOT_RELEASED)
    results = json.loads(capsys.readouterr().out)
    assert results == json.loads((job.folder / "out" / "results.json").read_text())
    (row,) = (row for row in results["comparison"] if row["domain"] == "heldout")
    assert row["low"] <= row["difference"] <= row["high"] and row["n"] >= 8
    transformers = pytest.importorskip("transformers")
    transformers.AutoModelForCausalLM.from_pretrained(job.folder / "out" / "model")
    page = (job.folder / "out" / "report.html").read_text()
    assert "before" in page and "say " in page
    assert job.run() in (OK, NOT_RELEASED)  # all is made: nothing runs again
    assert "running" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_model_that_learnt_one_reply_to_everything_is_not_called_better(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"say {word} fox", "answer": "eoa"[place % 3]} for place, word in enumerate(words(100))]
    job.tasks(rows[:40])
    job.grader(python("return float(item['answer'] in sample['output_text'])"))
    collapse = ["--steps", "10", "--prompts", "8", "--group", "8", "--max-tokens", "1", "--learning-rate", "0.03"]
    assert job.run("--heldout", str(job.tasks(rows[40:], "held.jsonl")), *collapse) == NOT_RELEASED
    results = json.loads((job.folder / "out" / "results.json").read_text())
    (heldout,) = (row for row in results["comparison"] if row["domain"] == "heldout")
    (doubt,) = (reason for reason in results["reasons"] if "may be that of one reply alone" in reason)
    assert heldout["low"] > 0 and results["decision"] == "inconclusive"
    assert doubt in capsys.readouterr().out
    assert doubt.split("'")[0] in (job.folder / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{not json", "tasks.jsonl:3: Expecting"),
        ('["a list"]', "tasks.jsonl:3: a task is a JSON object"),
        ({"prompt": "say aa fox", "answer": "aa fox"}, "tasks.jsonl:3: it repeats line 1"),
        ({"prompt": "say more"}, "tasks.jsonl:3: no field answer, which the grader's template {{item.answer}} reads"),
        ({"answer": "x"}, "tasks.jsonl:3: give either prompt"),
        ({"prompt": " ", "answer": "x"}, "tasks.jsonl:3: a prompt is text that is not empty"),
        ({"messages": [{"role": "bot", "content": "x"}], "answer": "x"}, "tasks.jsonl:3: a message has a role"),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "answer": "x"},
            "tasks.jsonl:3: messages end with the assistant's own turn",
        ),
    ],
)
def test_a_bad_line_is_named_before_any_work(
    job: Job, capsys: pytest.CaptureFixture[str], line: Any, said: str
) -> None:
    rows: list[Any] = [{"prompt": f"say {word} fox", "answer": f"{word} fox"} for word in words(50)]
    job.tasks([*rows[:2], line, *rows[2:]])
    assert job.run() == BAD_USE
    assert said in capsys.readouterr().err
    assert not (job.folder / "out").exists()


@pytest.mark.parametrize(
    ("grader", "said"),
    [
        (EXACT | {"reference": "never"}, "of {tasks}:1: it would reward something else"),
        (EXACT | {"operation": "ne"}, "gold answers less than 1"),
        (python("return 1.0"), "passes an empty answer"),
        (python("raise RuntimeError('broken')"), "the grader fails on {tasks}:1: "),
        (python("return float('nan')"), "no finite number"),
        (python("return 'good'"), "is no number"),
        (EXACT | {"input": "{{sample.text}}"}, "input: {{sample.text}} is no template"),
        (EXACT | {"operation": "equals"}, "operation"),
        (EXACT | {"type": "string_chek"}, "string_check"),
        (FUZZY | {"evaluation_metric": "cosine"}, "needs an embedding model"),
        (python("return") | {"source": "def grade(sample, item) return 1"}, "source does not compile"),
    ],
)
def test_a_broken_grader_is_refused_before_any_work(
    job: Job, capsys: pytest.CaptureFixture[str], grader: dict[str, Any], said: str
) -> None:
    job.grader(grader)
    assert job.run() == BAD_USE
    assert said.replace("{tasks}", str(job.folder / "tasks.jsonl")) in capsys.readouterr().err
    assert not (job.folder / "out").exists()


def test_a_grader_that_hangs_is_refused(
    job: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from noria.grading import python_grader
    from noria.sandbox import Limits

    monkeypatch.setattr(python_grader, "LIMITS", Limits(cpu_seconds=1, wall_seconds=1.0))
    job.grader(python("while True: pass"))
    assert job.run() == BAD_USE
    assert "did not end" in capsys.readouterr().err


def test_a_prompt_longer_than_the_context_is_refused_before_training(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"say {word} fox", "answer": word} for word in words(80)]
    rows[6]["prompt"] *= 60
    job.tasks(rows)
    status, said = job.run(), capsys.readouterr().err
    assert status == FAILED, said
    assert re.search(
        r"tasks\.jsonl:7: its prompt of \d{3} tokens leaves no room for a reply of 4 .* context of 96", said
    )
    assert "a prompt may have 92" in said and said.count("leaves no room") == 1
    held = job.tasks([{"prompt": "hold " * 60 + word, "answer": word} for word in words(8)], "held.jsonl")
    held.write_text("\n" + held.read_text())
    assert job.run("--heldout", str(held)) == FAILED
    said = capsys.readouterr().err
    assert "tasks.jsonl:7: its prompt" in said and "held.jsonl:2: its prompt" in said
    assert job.run("--max-tokens", "96") == FAILED
    assert "a reply of 96 tokens leaves no room for a prompt" in capsys.readouterr().err


def test_rewards_that_are_all_equal_stop_the_run_before_the_model_is_measured(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    job.grader(EXACT)
    job.tasks([{"prompt": f"say {word} fox", "answer": f"never {word} said"} for word in words(50)])
    for _ in range(2):
        assert job.run() == FAILED
        told = capsys.readouterr()
        assert "evaluate_before failed: NoSignal: all 8 replies of the first step got the reward 0" in told.err
        assert "evaluate_before made" not in told.out and "grpo" not in told.out


def test_too_few_tasks_to_hold_any_out_are_refused_unless_a_file_holds_them(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"say {word} fox", "answer": f"{word} fox"} for word in words(12)]
    job.tasks(rows)
    assert job.run() == BAD_USE and "--heldout" in capsys.readouterr().err
    assert job.run("--heldout", str(job.tasks(rows[:9], "held.jsonl"))) == BAD_USE
    assert "held-out prompts are trained on too" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 7])
def test_held_out_tasks_too_few_to_prove_anything_are_refused_before_any_work(
    job: Job, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    held = job.tasks([{"prompt": f"hold {word}", "answer": word} for word in words(count)], "held.jsonl")
    assert job.run("--heldout", str(held)) == BAD_USE
    assert f"held.jsonl: {count} held-out tasks, and it takes 8 at least" in capsys.readouterr().err
    assert not (job.folder / "out").exists()


def test_the_split_depends_on_nothing_but_the_id() -> None:
    from noria.evals.gym_tasks import split_of

    shares = [split_of(str(index)) for index in range(2000)]
    assert shares == [split_of(str(index)) for index in range(2000)]
    assert 0.17 < shares.count("heldout") / 2000 < 0.23


def test_grader_commands_validate_and_run(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(job.folder / "grader.json")
    assert status_of(["grader", "validate", path, "--json"]) == OK
    assert json.loads(capsys.readouterr().out)["required_fields"] == ["answer"]
    assert status_of(["grader", "run", path, "--item", '{"answer": "aa fox"}', "--sample", "aa fox"]) == OK
    assert json.loads(capsys.readouterr().out)["reward"] == 1.0
    assert status_of(["grader", "run", path, "--item", "{}", "--sample", "aa fox"]) == FAILED
    result = json.loads(capsys.readouterr().out)
    assert result["reward"] is None and result["metadata"]["errors"]["invalid_variable_error"] is True
    assert "item.answer" in result["metadata"]["errors"]["invalid_variable_error_details"]


def test_a_terminal_shows_rewards_and_replies_as_training_goes(job: Job) -> None:
    from rich.console import Console

    from noria.artifacts import Store
    from noria.studio.training_view import training_view

    assert job.run() in (OK, NOT_RELEASED)
    store = Store(job.folder / "out" / "store")
    key = store.resolve("grpo")
    console = Console(record=True, width=100, file=open("/dev/null", "w"))
    console.print(training_view(store, key))
    shown = console.export_text()
    for name in ("reward", "probe accuracy, greedy", "reply length", "KL to the start", "entropy"):
        assert name in shown
    assert "say " in shown and "->" in shown


def test_weights_are_trained_in_the_precision_asked_for(
    job: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from noria.artifacts import Step
    from noria.stages import open_model

    asked = []

    def stop(model: Step, tasks: Step, grpo: open_model.GrpoSection, *_: object) -> list[Step]:
        asked.append((grpo.precision, grpo.weight_precision, grpo.compile))
        raise KeyboardInterrupt

    monkeypatch.setattr(open_model, "journey", stop)
    job.run()
    job.run("--precision", "bfloat16", "--weight-precision", "bfloat16", "--compile")
    assert asked == [("float32", "float32", False), ("bfloat16", "bfloat16", True)]
    assert job.run("--weight-precision", "bfloat16") == BAD_USE  # the others are float32
    assert "needs --precision bfloat16" in capsys.readouterr().err and len(asked) == 2


def test_compilation_without_a_compiler_is_bad_use(
    job: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import cpp_builder, exc

    def none() -> None:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    assert job.run("--compile") == BAD_USE
    assert "install g++" in capsys.readouterr().err and not (job.folder / "out").exists()


def test_help_says_where_this_command_keeps_its_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["rft", "--help"]) == OK
    said = " ".join(capsys.readouterr().out.split())
    assert "OUT/store if not given" in said and "./store if not given" not in said.replace("OUT/store", "")
