"""Tasks of others: noria import-tasks."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noria.cli.app import FAILED, OK, JsonOption, app, json_object, make_room
from noria.studio.output import console, print_json

if TYPE_CHECKING:
    from noria.harness.importers.imported import Imported


class Source(StrEnum):
    harbor = "harbor"
    inspect = "inspect"
    verifiers = "verifiers"


@app.command(
    name="import-tasks",
    epilog="Examples: noria import-tasks harbor my_tasks/ --out tasks.jsonl    "
    "noria import-tasks inspect eval.py@mine --python peer/bin/python. Exit codes: 0 all, 1 none could be imported.",
)
def import_tasks(
    kind: Annotated[Source, typer.Argument(metavar="KIND", help="harbor, inspect or verifiers.")],
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A folder of Harbor tasks; a task or taskset's name.")
    ],
    python: Annotated[
        str, typer.Option(help="The interpreter of an environment that has inspect-ai or verifiers.")
    ] = "python",
    arguments: Annotated[str, typer.Option(help="Arguments of the task or taskset, a JSON object.")] = "{}",
    limit: Annotated[int, typer.Option(min=1, help="Tasks at most; not for harbor.")] = 1000,
    out: Annotated[Path | None, typer.Option(help="Write the tasks here, in JSON Lines.")] = None,
    json_: JsonOption = False,
) -> int:
    """Make tasks of ours of Harbor task folders, an Inspect task or a verifiers taskset; what can't be is named."""
    from noria.types import task_to_json

    given = json_object(arguments, "--arguments")
    if out:
        make_room(out)
    with _opened(kind, source, python, given, limit) as imported:
        if out:
            out.write_text("".join(task_to_json(task) + "\n" for task in imported.tasks), encoding="utf-8")
        status = OK if imported.tasks else FAILED
        if json_:
            told: dict[str, Any] = {"tasks": [json.loads(task_to_json(task)) for task in imported.tasks]}
            print_json({**told, "refused": dict(imported.refused)})
            return status
        console().print(f"{len(imported.tasks)} tasks, {len(imported.refused)} refused", highlight=False)
        for name, reason in imported.refused.items():
            console().print(f"  {name}: {reason}", markup=False, highlight=False)
        return status


@contextlib.contextmanager
def _opened(kind: Source, source: str, python: str, arguments: dict[str, Any], limit: int) -> Iterator[Imported]:
    if kind is Source.harbor:
        from noria.harness.importers.harbor import import_harbor

        yield import_harbor(Path(source))
        return
    from noria.harness.importers.inspect import inspect_tasks
    from noria.harness.importers.verifiers import verifiers_tasks

    tasks = inspect_tasks if kind is Source.inspect else verifiers_tasks
    with tasks(source, python, arguments=arguments, limit=limit) as imported:
        yield imported
