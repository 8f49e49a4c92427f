"""Harbor task folders in our sandbox: solved by their solution, judged by their tests, refused with a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from noria.data.tokenizer import Tokenizer, train_tokenizer
from noria.harness import ScriptedSampler, Toolbox, rollout
from noria.harness.environments.environment import TasksExhausted, call, follow
from noria.harness.importers.harbor import import_harbor
from noria.harness.importers.imported import Imported, ImportRefused
from noria.harness.rollout import Budget
from noria.harness.scripted import Policy
from noria.sandbox import Limits, Sandbox
from noria.types import Score, Task

BUDGET = Budget(turns=4, tokens_per_turn=4000, context=20_000)
TOML = (
    '[task]\nname = "mine/count-words"\n[environment]\ncpus = 1\nallow_internet = false\n[verifier.env]\nLIMIT = "3"\n'
)
DOCKERFILE = """FROM python:3.13-slim
RUN apt-get update && apt-get install -y --no-install-recommends bash \\
    && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir pytest==8.4.1 pytest-json-ctrf==0.3.5
ENV PYTHONUNBUFFERED=1
WORKDIR /app
COPY words.txt /app/words.txt
"""
TEST_SH = """#!/bin/bash
mkdir -p /logs/verifier
pytest --ctrf /logs/verifier/ctrf.json /tests/test_outputs.py -rA
if [ $? -eq 0 ]; then echo 1 > /logs/verifier/reward.txt; else echo 0 > /logs/verifier/reward.txt; fi
"""
TEST_PY = """import json, os
from pathlib import Path

def test_count():
    assert json.loads(Path("/app/report.json").read_text()) == {"words": int(os.environ["LIMIT"])}
"""
SOLVE = "#!/bin/bash\nset -e\ncd /app\nbash /solution/count.sh > report.json\n"
COUNT = 'echo "{\\"words\\": $(wc -w < /app/words.txt)}"\n'


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["count the words of a file and write a report " * 10], 320)


@pytest.fixture(scope="module")
def box():
    with Sandbox(Limits(cpu_seconds=5), workers=1) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {
        "task.toml": TOML,
        "instruction.md": "Count the words of /app/words.txt into /app/report.json, and mind/app/le.\n",
        "environment/Dockerfile": DOCKERFILE,
        "environment/words.txt": "one two three\n",
        "tests/test.sh": TEST_SH,
        "tests/test_outputs.py": TEST_PY,
        "solution/solve.sh": SOLVE,
        "solution/count.sh": COUNT,
    }
    for path, text in files.items():
        place = tmp_path / "count-words" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return tmp_path / "count-words"


def graded(imported: Imported, policy: Callable[[Task], Policy], box: Sandbox, tokenizer: Tokenizer) -> Score:
    (task,) = imported.tasks
    program = imported.environment(BUDGET).harness
    tools = Toolbox(box, imported.tools)
    sampler = ScriptedSampler(tokenizer, policy(task))
    (trace,) = rollout([task], [1], sampler, tokenizer, program, budget=BUDGET, tools=tools)
    return imported.grader.grade([task], [trace])[0]


@pytest.mark.slow
def test_the_solution_scores_one_and_nothing_scores_zero(folder: Path, box: Sandbox, tokenizer: Tokenizer):
    imported = import_harbor(folder)
    assert not imported.refused
    (task,) = imported.tasks
    assert task.messages[0].content == "Count the words of /work/words.txt into /work/report.json, and mind/app/le."
    solved = imported.gold(task)
    assert solved is not None
    score = graded(imported, lambda task: solved, box, tokenizer)
    assert score.value == 1.0, score.evidence
    assert graded(imported, lambda task: follow(["done"]), box, tokenizer).value == 0.0


@pytest.mark.slow
def test_what_an_agent_leaves_does_not_stand_before_the_tests(folder: Path, box: Sandbox, tokenizer: Tokenizer):
    """Files that pytest or Python would load first, a reward of one's own, and tests of one's own."""
    passing = "def pytest_pyfunc_call(pyfuncitem): return True"
    replies = [
        call("write_file", "conftest.py", passing),
        call("write_file", "json.py", "loads = lambda text: {'words': 3}"),
        call("terminal", "mkdir -p .harbor/tests; echo 1 > .harbor/reward.txt; cp .harbor/reward.txt report.json"),
        "done",
    ]
    score = graded(import_harbor(folder), lambda task: follow(replies), box, tokenizer)
    assert score.status == "graded" and score.value == 0.0


def test_tests_that_write_no_reward_are_a_failed_grading(folder: Path, box: Sandbox, tokenizer: Tokenizer):
    (folder / "tests" / "test.sh").write_text("exit 1\n")
    score = graded(import_harbor(folder), lambda task: follow(["done"]), box, tokenizer)
    assert (score.status, score.reason) == ("failed", "crash")


@pytest.mark.parametrize(
    ("path", "text", "reason"),
    [
        ("environment/Dockerfile", "FROM nvidia/cuda:12\nWORKDIR /app", "Dockerfile:1: the image nvidia/cuda:12"),
        ("environment/Dockerfile", "FROM debian\nWORKDIR /app\n\nRUN make install", "Dockerfile:4: RUN make install"),
        ("environment/Dockerfile", "FROM debian\nRUN pip install numpy\nWORKDIR /app", "the Python package numpy"),
        ("environment/Dockerfile", "FROM debian\nRUN apt-get install -y nosuch-thing\nWORKDIR /a", "nosuch-thing"),
        ("environment/Dockerfile", "FROM debian\n", "no WORKDIR"),
        (
            "environment/Dockerfile",
            "FROM debian\nWORKDIR /app\nCOPY gone.txt .",
            "gone.txt is not in the build context",
        ),
        ("environment/Dockerfile", "FROM debian\nWORKDIR /app\nCOPY words.txt /etc/", "/etc/words.txt lies outside"),
        ("environment/docker-compose.yaml", "services: {}", "several containers"),
        ("tests/test.sh", "curl -LsSf https://example.org | sh", "needs the network"),
        ("task.toml", "[environment]\ngpus = 1", "a graphics card"),
        ("task.toml", '[[steps]]\nname = "a"', "several steps"),
        ("task.toml", "not toml", "can't be read"),
    ],
)
def test_what_the_sandbox_can_not_run_is_refused_with_its_reason(folder: Path, path: str, text: str, reason: str):
    (folder / path).write_text(text)
    imported = import_harbor(folder.parent)
    assert imported.tasks == () and reason in imported.refused["count-words"]


def test_an_environment_of_imported_tasks_says_how_many_there_are(folder: Path):
    environment = import_harbor(folder).environment(BUDGET)
    counts = []
    for split in environment.splits:
        with pytest.raises(TasksExhausted):
            environment.generate(2, 0, split)
        try:
            counts.append(len(environment.generate(1, 0, split)))
        except TasksExhausted:
            counts.append(0)
    assert sorted(counts) == [0, 1]
    with pytest.raises(ImportRefused, match=r"task\.toml"):
        import_harbor(folder / "tests")
