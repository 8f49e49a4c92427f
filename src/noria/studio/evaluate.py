"""`noria eval`: one model folder on a user's tasks or on the built-in families, outside of any run."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noria.studio.output import progress

if TYPE_CHECKING:
    from noria.evals.benchmarks import Item
    from noria.grading.language_grader import LanguageGrader
    from noria.inference.weights import Precision
    from noria.types import Task


@dataclass(frozen=True)
class Asked:
    """What to ask and how to sample. Without `tasks`, `per_domain` held-out tasks of each domain."""

    tasks: Path | None
    per_domain: int
    max_tokens: int
    temperature: float
    seed: int
    precision: Precision = "float32"
    grader: Path | None = None  # a file in the grader language, for tasks as `noria rft` takes them


def evaluate_folder(folder: Path, asked: Asked, out: Path | None = None) -> dict[str, Any]:
    """The summary of stage 6 for one model; items go to `out` as JSON Lines. Tasks are read, and their answers graded,
    first. Gradings that failed are told on stderr, with their reasons."""
    from noria.evals.benchmarks import run_benchmark, single_turn, summarise

    tasks, judge = _tasks_and_judge(asked)

    from noria.data.chat_tokenizer import load_chat_tokenizer
    from noria.inference import Engine, affordable_rows
    from noria.model import load_model

    model = load_model(folder)
    tokenizer = load_chat_tokenizer(folder)
    longest = max(len(tokenizer.render(task.messages)) for task in tasks) + asked.max_tokens + 1
    context = min(model.config.context, longest)
    rows = min(64, affordable_rows(model.config, context))
    engine = Engine(model, tokenizer.end, max_rows=rows, context=context, precision=asked.precision, consume_model=True)
    answer = single_turn(engine, tokenizer, engine.context, asked.max_tokens, asked.temperature, asked.seed)
    with progress("tasks", len(tasks)) as report:
        grading = judge.grade if judge else None
        items = [item for item, _ in run_benchmark(tasks, answer, batch=rows, report=report, grading=grading)]
    if judge:
        items = [_by_threshold(item, judge.threshold) for item in items]
    if out is not None:
        lines = (json.dumps(item.as_json(), ensure_ascii=False) + "\n" for item in items)
        out.write_text("".join(lines), encoding="utf-8")
    reasons = failed_gradings(items)
    for family, counts in reasons.items():
        said = ", ".join(f"{count} × {reason}" for reason, count in counts.items())
        print(f"noria: {family}: answers that could not be graded, and count neither way: {said}", file=sys.stderr)
    return {
        "model": str(folder),
        "precision": asked.precision,
        "items": len(items),
        **summarise(items),
        "not_graded": reasons,
    }


def _tasks_and_judge(asked: Asked) -> tuple[list[Task], LanguageGrader | None]:
    """What to ask, and who grades it if not each task's own grader. A grader that is broken is refused."""
    if asked.tasks and asked.grader:
        from noria.evals.rft_tasks import read_numbered
        from noria.grading.grader_language import read, required_fields
        from noria.grading.language_grader import LanguageGrader, refuse_broken

        judge = LanguageGrader(read(asked.grader))
        tasks = read_numbered(asked.tasks, judge.ref, required_fields(judge.grader))
        refuse_broken(judge, {f"{asked.tasks}:{number}": task for number, task in tasks.items()})
        return list(tasks.values()), judge
    from noria.evals.registry import held_out_tasks
    from noria.evals.task_file import read_tasks

    return read_tasks(asked.tasks) if asked.tasks else held_out_tasks(asked.per_domain, asked.seed), None


def _by_threshold(item: Item, threshold: float) -> Item:
    """Right from the grader's threshold on, as in `noria rft`."""
    return item if item.value is None else replace(item, correct=item.value >= threshold)


def failed_gradings(items: Iterable[Item]) -> dict[str, dict[str, int]]:
    """family -> reason -> how many answers could not be graded, the most frequent first."""
    found: dict[str, Counter[str]] = {}
    for item in items:
        if item.correct is None:
            found.setdefault(item.family, Counter())[item.reason] += 1
    return {family: dict(counts.most_common()) for family, counts in sorted(found.items())}
