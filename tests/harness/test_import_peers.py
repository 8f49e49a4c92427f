"""Inspect tasks and verifiers tasksets through a worker.

Tests that run them need environments that have the packages: NORIA_INSPECT_PYTHON and NORIA_VERIFIERS_PYTHON (of the
0.4 line) name their interpreters; docs/importing_tasks.md says how to make them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from noria.harness.importers.imported import Imported, ImportRefused
from noria.harness.importers.inspect import inspect_tasks
from noria.harness.importers.peer import Peer, PeerFailed
from noria.harness.importers.verifiers import verifiers_tasks
from noria.types import Message, Node, Score, Trace

INSPECT, VERIFIERS = os.environ.get("NORIA_INSPECT_PYTHON", ""), os.environ.get("NORIA_VERIFIERS_PYTHON", "")
needs_inspect = pytest.mark.skipif(not INSPECT, reason="NORIA_INSPECT_PYTHON names no interpreter that has inspect-ai")
needs_verifiers = pytest.mark.skipif(not VERIFIERS, reason="NORIA_VERIFIERS_PYTHON names none that has verifiers")

INSPECT_TASKS = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample, example_dataset
from inspect_ai.scorer import choice, match
from inspect_ai.solver import generate, multiple_choice, system_message, use_tools
from inspect_ai.tool import bash

@task
def beliefs():
    return Task(example_dataset("theory_of_mind"), solver=[system_message("Be short."), generate()], scorer=match())

@task
def sums():
    return Task([Sample("2+2?", choices=["3", "4"], target="B")], solver=multiple_choice(), scorer=choice())

@task
def shell():
    return Task([Sample("list", target="x")], solver=[use_tools(bash()), generate()], scorer=match())

@task
def container():
    return Task([Sample("list", target="x")], scorer=match(), sandbox="docker")
"""
TASKSET = """
import verifiers.v1 as vf

class Data(vf.TaskData):
    answer: str

class Sum(vf.Task[Data, vf.State, vf.TaskConfig]):
    @vf.reward(weight=2.0)
    async def exact(self, trace) -> float:
        return float(trace.last_reply.strip() == self.data.answer)

    @vf.reward(weight=0.5)
    async def short(self, trace) -> float:
        return float(len(trace.last_reply) < 5)

class Sums(vf.Taskset[Sum, vf.TasksetConfig]):
    def load(self):
        for n in range(5):
            image = "python:3.12" if n == 1 else None
            yield Sum(Data(id=f"s{n}", prompt=f"{n}+{n}=?", system_prompt="A number.", answer=str(2 * n), image=image))

__all__ = ["Sums"]
"""


def graded(imported: Imported, place: int, reply: str) -> Score:
    task = imported.tasks[place]
    node = Node((), Message("assistant", reply))
    return imported.grader.grade([task], [Trace("t", task.id, (node,), 0, "h", "finished")])[0]


@needs_inspect
def test_an_inspect_task_gives_its_prompts_and_grades_with_its_scorer(tmp_path: Path):
    (tmp_path / "tasks.py").write_text(INSPECT_TASKS)
    with inspect_tasks(f"{tmp_path}/tasks.py@beliefs", INSPECT, limit=5) as imported:
        assert len(imported.tasks) == 5 and not imported.refused
        first = imported.tasks[0]
        assert [message.role for message in first.messages] == ["system", "user"]
        assert first.messages[0].content == "Be short." and "Where was" in first.messages[1].content
        right = graded(imported, 0, f"<think>perhaps the moon</think>the {first.answer}")
        assert right.value == 1.0 and right.components == {"match": 1.0}
        assert graded(imported, 0, "the moon").value == 0.0
        gold = imported.gold(first)
        assert gold is not None and graded(imported, 0, gold(first.messages, 0)).value == 1.0


@needs_inspect
def test_inspect_choices_go_through_inspects_own_solver(tmp_path: Path):
    (tmp_path / "tasks.py").write_text(INSPECT_TASKS)
    with inspect_tasks(f"{tmp_path}/tasks.py@sums", INSPECT) as imported:
        assert "A) 3" in imported.tasks[0].messages[0].content
        values = [graded(imported, 0, reply).value for reply in ("ANSWER: B", "ANSWER: A", "4")]
        assert values == [1.0, 0.0, 0.0]


@needs_inspect
def test_inspect_tasks_of_tools_or_containers_are_refused_with_the_reason(tmp_path: Path):
    (tmp_path / "tasks.py").write_text(INSPECT_TASKS)
    with inspect_tasks(f"{tmp_path}/tasks.py@shell", INSPECT) as imported:
        assert imported.tasks == () and "gives tools" in next(iter(imported.refused.values()))
    for name, reason in (("@container", "wants a sandbox"), ("", "name the task")):
        with pytest.raises(ImportRefused, match=reason):
            inspect_tasks(f"{tmp_path}/tasks.py{name}", INSPECT)


@needs_verifiers
def test_a_verifiers_taskset_gives_its_prompts_and_grades_with_its_rewards(tmp_path: Path):
    (tmp_path / "sums").mkdir()
    (tmp_path / "sums" / "__init__.py").write_text(TASKSET)
    with verifiers_tasks(str(tmp_path / "sums"), VERIFIERS, limit=4) as imported:
        assert imported.refused == {"s1": "it wants a container"}
        assert [task.messages[1].content for task in imported.tasks] == ["0+0=?", "2+2=?", "3+3=?"]
        assert graded(imported, 1, "4").components == {"exact": 2.0, "short": 0.5}
        assert graded(imported, 1, "four, I think").value == 0.0
    with pytest.raises(ImportRefused, match="not found"):
        verifiers_tasks(str(tmp_path / "nosuch"), VERIFIERS)


# -- the worker, whatever it runs --

WORKER = """
import os, time
def make(settings):
    if settings.get("needs"):
        __import__(settings["needs"])
    print("a library prints")
    hang, die, fail = lambda: time.sleep(600), lambda: os._exit(3), lambda: 1 / 0
    return {"double": lambda x: 2 * x, "hang": hang, "die": die, "fail": fail}
"""


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    (tmp_path / "worker.py").write_text(WORKER)
    return tmp_path / "worker.py"


def test_a_worker_answers_and_tells_its_failures(worker: Path):
    with Peer(sys.executable, worker, "thing", {}, 60) as peer:
        assert peer.ask(op="double", x=21) == 42
        with pytest.raises(PeerFailed, match="ZeroDivisionError"):
            peer.ask(op="fail")
        assert peer.ask(op="double", x=2) == 4  # what libraries print is no answer
        with pytest.raises(PeerFailed, match="the thing worker ended"):
            peer.ask(op="die")


def test_a_worker_that_hangs_is_stopped(worker: Path):
    with Peer(sys.executable, worker, "thing", {}, 0.3) as peer, pytest.raises(PeerFailed, match="gave no answer"):
        peer.ask(op="hang")


def test_what_is_missing_is_named_with_what_to_install(worker: Path):
    with (
        Peer(sys.executable, worker, "thing", {"needs": "no_such_package"}, 60) as peer,
        pytest.raises(ImportRefused, match=r"no_such_package.*pip install thing"),
    ):
        peer.ask(op="double", x=1)
    with pytest.raises(ImportRefused, match="can't run /no/python"):
        Peer("/no/python", worker, "thing", {}, 60)
    with pytest.raises(ImportRefused, match="pip install inspect-ai"):
        inspect_tasks("x.py@y", sys.executable)
