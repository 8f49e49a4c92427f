"""Answers of imported tasks: a family that has only a scorer gives none, and "None" is an answer like another."""

from __future__ import annotations

from noria.evals.gym_tasks import GymFamily, gym_tasks
from noria.grading import grader_ref
from noria.stages.open_model_evaluation import _gold
from noria.types import Message, Task


def test_a_family_without_answers_gives_tasks_without_answers():
    family = GymFamily(name="colours", gym="graph_color", config={"min_num_vertices": 4, "max_num_vertices": 6})
    tasks = gym_tasks(family, 2, 0, "train", "train")
    assert [task.answer for task in tasks] == ["", ""] and _gold(tasks) == {}
    assert all(task.hidden["entry"]["answer"] is None for task in tasks)


def test_none_in_a_users_file_is_an_answer():
    asked = (Message("user", "what does print(print()) print last?"),)
    tasks = [
        Task("a", asked, grader_ref("gym"), "None", "user", "heldout"),
        Task("b", asked, grader_ref("gym"), "", "user", "heldout"),
    ]
    assert _gold(tasks) == {"a": "None"}
