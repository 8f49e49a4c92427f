"""Graders of the JSON language, which noria rft and eval take: noria grader validate | run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from noria.cli.app import FAILED, OK, JsonOption, app, json_object
from noria.studio.output import print_json

graders = typer.Typer(help="Graders of the JSON language: check one, try one.", no_args_is_help=True)
app.add_typer(graders, name="grader")

GraderFile = Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A grader in JSON.")]


@graders.command(epilog="Example: noria grader validate grader.json")
def validate(file: GraderFile, json_: JsonOption = False) -> int:
    """Check a grader and say which fields of a task its templates read."""
    from noria.grading.grader_language import read, required_fields

    grader = read(file)
    fields = required_fields(grader)
    if json_:
        return print_json({"grader": grader.model_dump(mode="json"), "required_fields": fields})
    typer.echo(
        f"{file} is a valid {grader.type} grader; its templates read {', '.join(fields) or 'no field'} of a task"
    )
    return OK


@graders.command(epilog="""Example: noria grader run grader.json --item '{"answer": "4"}' --sample 4""")
def run(
    file: GraderFile,
    item: Annotated[str, typer.Option(help="The task, as a JSON object.")],
    sample: Annotated[str, typer.Option(help="What the model said.")],
) -> int:
    """Grade one sample: reward, sub_rewards and typed errors as JSON. Exit code 1 where there is no reward."""
    from noria.grading.grader_language import read
    from noria.grading.grader_language import run as grade

    grader = read(file)
    result = grade(grader, json_object(item, "--item"), sample)
    print_json(result)
    return OK if result["reward"] is not None else FAILED
