"""Rejection sampling: every verdict has its case, and the first good sample of a task is kept."""

from __future__ import annotations

import pytest

from noria.evals.tasks import demonstrate, generate
from noria.posttraining.rejection import is_repetitive, judge, sample_and_keep
from noria.posttraining.task_set import make_task_set, read_demonstrations, read_tasks
from noria.types import GraderRef, Message, Node, Score, Trace

GRADER = GraderRef("g", "1")


def trace(reply, outcome="finished", task_id="t"):
    return Trace("trace", task_id, (Node((), Message("assistant", reply)),), 0, "plain", outcome)


RIGHT = Score("graded", GRADER, 1.0)
VERDICTS = [
    ("kept", trace("<think>2+3=5</think>5"), RIGHT),
    ("ungraded", trace("<think>2+3=5</think>5"), Score("failed", GRADER, None, "timeout")),
    ("ungraded", trace("", "sandbox_error"), Score("failed", GRADER, None, "sandbox")),
    ("wrong", trace("<think>2+3=6</think>6"), Score("graded", GRADER, 0.0)),
    ("wrong", trace("<think>2+3=5</think>5"), Score("graded", GRADER, 0.99)),
    ("truncated", trace("<think>2+3=5</think>5", "truncated"), RIGHT),
    ("unreadable", trace("5"), RIGHT),
    ("unreadable", trace("<think>2+3=5"), RIGHT),
    ("unreadable", trace("<think></think>5"), RIGHT),
    ("unreadable", trace("<think>2+3=5</think>"), RIGHT),
    ("repetitive", trace("<think>2+3=5, 2+3=5, 2+3=5, 2+3=5, 2+3=5</think>5"), RIGHT),
    ("mixed_language", trace("<think>первый шаг 2+3=5</think>5"), RIGHT),
]


@pytest.mark.parametrize("verdict, reply, score", VERDICTS)
def test_each_verdict(verdict, reply, score):
    assert judge(reply, score) == verdict


def test_work_may_repeat_but_not_go_round_in_circles():
    assert not is_repetitive("1+1=2, 1+1=2, 1+1=2")
    assert is_repetitive(", ".join(["so it is"] * 5))


def sampled(tasks, samples, replies, only_correct=True, per_family=100):
    """Sample i of a task replies replies(task, i)."""
    seen: dict[str, int] = {}

    def roll(chosen, seeds):
        assert len(set(seeds)) == len(seeds)
        found = []
        for task in chosen:
            seen[task.id] = seen.get(task.id, -1) + 1
            found.append(trace(replies(task, seen[task.id]), task_id=task.id))
        return found

    def report(*_):
        return None

    return sample_and_keep(tasks, roll, samples, per_family, 0, report, only_correct=only_correct)


def test_the_first_sample_that_passes_is_kept_and_all_are_counted():
    tasks = generate("addition", 5, 0, "train")

    def replies(task, index):
        return f"<think>guess {index}</think>{task.answer if index in (1, 2) else 0}"

    kept, counts = sampled(tasks, 4, replies)
    assert {task.id for task, _ in kept} == {task.id for task in tasks}
    assert all(reply == f"<think>guess 1</think>{task.answer}" for task, reply in kept)
    assert counts == {"samples_kept": 10, "samples_wrong": 10}


def test_nothing_is_kept_where_nothing_is_right_unless_all_is_asked_for():
    tasks = generate("addition", 3, 0, "train")
    assert sampled(tasks, 2, lambda task, index: "no")[0] == []
    kept, _ = sampled(tasks, 2, lambda task, index: f"no {index}", only_correct=False)
    assert [reply for _, reply in kept] == ["no 0"] * 3


def test_each_family_gives_at_most_its_share():
    tasks = [*generate("addition", 9, 0, "train"), *generate("ordering", 2, 0, "train")]
    kept, _ = sampled(tasks, 1, lambda task, index: demonstrate(task), per_family=4)
    families = [task.family for task, _ in kept]
    assert families.count("addition") == 4 and families.count("ordering") == 2


def test_a_task_set_shares_no_task_between_demonstrations_and_rl(tmp_path):
    counts = make_task_set(tmp_path, lambda *_: None, demonstrations=6, rl_tasks=9, general_demonstrations=8, seed=0)
    shown, general = (read_demonstrations(tmp_path / f"{name}.jsonl") for name in ("demonstrations", "general"))
    trained = read_tasks(tmp_path / "rl.jsonl")
    assert counts == {"demonstrations": len(shown), "rl_tasks": len(trained), "general": len(general)}
    assert counts == {"demonstrations": 7 * 6, "rl_tasks": 9 * 9, "general": 16}
    assert not {task.id for task, _ in [*shown, *general]} & {task.id for task in trained}
    assert all(reply == demonstrate(task) for task, reply in shown)
