"""Tasks from a JSON Lines file: a user's own benchmark or prompts, one task a line.

    {"prompt": "What is 2 + 2?", "answer": "4", "grader": "maths"}

`messages` may stand for `prompt`, and `id`, `family`, `domain`, `difficulty` and `hidden` may be given; a line that
`task_to_json` wrote is read as it is. Grader `code` runs the reply's function on `hidden`:

    {"prompt": "Write f(x): add 2.", "answer": "", "grader": "code", "hidden": {"entry": "f", "tests": [[[1], 3]]}}

Before any model is asked, each answer is given to the task's own grader, which must accept it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

from noria.evals.benchmarks import grade
from noria.grading import GRADERS, grader_ref
from noria.grading.final_answer import number
from noria.types import GraderRef, Message, Node, Role, Score, Task, Trace, digest

FIELDS = ("prompt", "messages", "answer", "grader", "id", "family", "domain", "difficulty", "hidden")
STATED = ("maths", "maths_weak", "logic")  # the answer is what a right reply states
RUN = ("code", "code_weak")  # the answer, where there is one, is a program that passes the tests
FUNCTIONS = frozenset(
    "sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan log exp sqrt inf pi mod gcd lcm".split()
)


class TaskFileError(ValueError):
    """A file of tasks that can't be used; the message has a line for each problem, with file and line number."""


def read_tasks(path: Path) -> list[Task]:
    """The tasks of the file, in order; the grader of each can judge it. Raises TaskFileError with all that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskFileError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from error
    tasks: dict[int, Task] = {}
    problems: dict[int, str] = {}
    ids: set[str] = set()
    for place, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            task = _task(json.loads(line), path.stem)
            if task.id in ids:
                raise ValueError(f"the id {task.id!r} is that of an earlier line")
            tasks[place] = task
            ids.add(task.id)
        except ValueError as error:
            problems[place] = str(error)
    unfit = _ungradeable(list(tasks.values()))
    problems |= {place: unfit[task.id] for place, task in tasks.items() if task.id in unfit}
    said = [f"{path}:{place}: {problems[place]}" for place in sorted(problems)]
    if not tasks and not problems:
        said = [f'{path} holds no task; a line looks like {{"prompt": "...", "answer": "...", "grader": "maths"}}']
    if said:
        more = f"\nand {len(said) - 10} more" if len(said) > 10 else ""
        raise TaskFileError("\n".join(said[:10]) + more)
    return list(tasks.values())


# -- is there anything that this grader would call right? A task without it scores 0% whatever the model is. --


def _ungradeable(tasks: Sequence[Task]) -> dict[str, str]:
    """id -> why: tasks whose grader can't judge them, or does not accept their own answer, plain or in a sentence."""
    found: dict[str, str] = {}
    for form in ("{}", "The answer is {}."):
        asked = [task for task in tasks if task.id not in found and (form == "{}" or task.grader.name in STATED)]
        traces = [_reply(task, form.format(task.answer)) for task in asked]
        for task, score in zip(asked, grade(asked, traces), strict=True):
            if problem := _problem(task, score):
                found[task.id] = problem
    return found


def _reply(task: Task, text: str) -> Trace:
    asked = Message("user", task.messages[-1].content)
    nodes = (Node((), asked), Node((0,), Message("assistant", text)))
    return Trace(digest("gold", task.id, text), task.id, nodes, 0, "gold answer", "finished")


def _problem(task: Task, score: Score) -> str:
    name = task.grader.name
    if score.status == "failed":
        why = score.evidence.replace(f"task {task.id}", "the task")
        return f"the grader {name} can't judge it ({score.reason}): {why}"
    if name == "maths" and (words := _words_in_number(task.answer)):
        return (
            f"answer: the grader maths reads numbers and expressions, and {task.answer!r} has the word {words[0]!r}: "
            "write it in digits, or take the grader logic, which compares words"
        )
    own = name in STATED or (name in RUN and task.answer.strip())
    if own and score.value is not None and score.value < 1.0:
        return f"answer: the grader {name} does not accept the answer {task.answer!r:.80} itself: {score.evidence}"
    return ""


def _words_in_number(answer: str) -> list[str]:
    """Words that math-verify would read as products of letters, so that nothing but the same words equals them."""
    if number(answer) is not None:
        return []
    plain = re.sub(r"\\(?:text|mathrm|operatorname)\s*\{[^{}]*\}|\\[a-zA-Z]+", " ", answer)
    words = re.findall(r"[a-zA-Z]{3,}|\b(?:or|is)\b", plain)
    return [word for word in words if word.lower() not in FUNCTIONS]


# -- one line --


def _task(raw: Any, name: str) -> Task:
    """Raises ValueError with all that is wrong with the line."""
    if not isinstance(raw, Mapping):
        raise ValueError(f"a task is a JSON object; found {type(raw).__name__}")
    wrong: list[str] = []

    def read(part: Callable[[], Any]) -> Any:
        try:
            return part()
        except ValueError as error:
            wrong.append(str(error))
            return None

    if unknown := sorted(set(raw) - set(FIELDS)):
        wrong.append(f"unknown field {', '.join(unknown)}; allowed: {', '.join(FIELDS)}")
    messages = read(lambda: _prompt(raw))
    answer = read(lambda: _text(raw, "answer"))
    grader = read(lambda: _grader(raw.get("grader")))
    difficulty = read(lambda: _difficulty(raw.get("difficulty", 0.0)))
    hidden = read(lambda: _hidden(raw.get("hidden", {})))
    names = {field: read(partial(_text, raw, field)) for field in ("id", "family", "domain") if field in raw}
    if wrong:
        raise ValueError("; ".join(wrong))
    identity = digest(name, *(f"{message.role}:{message.content}" for message in messages), answer)
    return Task(
        id=names.get("id", identity),
        messages=messages,
        grader=grader,
        answer=answer,
        family=names.get("family", name),
        domain=names.get("domain", grader.name),
        difficulty=difficulty,
        hidden=hidden,
    )


def _prompt(raw: Mapping[str, Any]) -> tuple[Message, ...]:
    if ("prompt" in raw) == ("messages" in raw):
        raise ValueError("give either prompt (text) or messages (a list of role and content)")
    messages = (Message("user", _text(raw, "prompt")),) if "prompt" in raw else _messages(raw["messages"])
    if not all(message.content.strip() for message in messages):
        raise ValueError(f"{'prompt' if 'prompt' in raw else 'a message'} is empty: there is nothing to answer")
    return messages


def _messages(raw: Any) -> tuple[Message, ...]:
    if not isinstance(raw, list) or not raw:
        raise ValueError("messages is a list of at least one message")
    found = []
    for message in raw:
        if not isinstance(message, Mapping) or message.get("role") not in get_args(Role):
            raise ValueError(f"a message has a role ({', '.join(get_args(Role))}) and content; found {message!r}")
        found.append(Message(message["role"], _text(message, "content")))
    return tuple(found)


def _grader(raw: Any) -> GraderRef:
    """A grader by its name; the version is that of the installed one, whatever the line says."""
    name = raw.get("name") if isinstance(raw, Mapping) else raw
    if name not in GRADERS:
        raise ValueError(f"grader is one of {', '.join(sorted(GRADERS))}; found {name!r}")
    return grader_ref(name)


def _difficulty(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"difficulty is a number from 0 to 1; found {value!r}")
    return float(value)


def _hidden(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"hidden is a JSON object; found {value!r}")
    return dict(value)


def _text(raw: Mapping[str, Any], name: str) -> str:
    value = raw.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is text; found {json.dumps(value)}")
    return value
