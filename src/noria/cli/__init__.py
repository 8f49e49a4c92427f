"""The commands: noria run | plan | rft | grader | env | traces | why | lineage | forget | eval | chat | serve |
import | export | import-tasks | mcp serve | tools | call | recorded | report | runs | doctor | gc | sandbox.

A command loads what it needs when it is called, so that the quick ones stay quick. An error that noria raises itself is
a message for the user; only a defect gives a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from noria.cli.app import BAD_USE, FAILED, INTERRUPTED, OK, app

# Each of these adds its commands to `app`, in the order of --help.
from noria.cli import (  # isort: skip
    chain, rft, graders, env, traces, traces_again, records, models, import_tasks, mcp, recorded, upkeep, sandbox
)  # fmt: skip

__all__ = [
    "app",
    "chain",
    "env",
    "graders",
    "import_tasks",
    "main",
    "mcp",
    "models",
    "recorded",
    "records",
    "rft",
    "sandbox",
    "status_of",
    "traces",
    "traces_again",
    "upkeep",
]


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script. Exits; see the exit codes in --help."""
    sys.exit(status_of(arguments))


def status_of(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and turn what it raises into a message and an exit code."""
    try:
        result = app(args=None if arguments is None else list(arguments), prog_name="noria", standalone_mode=False)
        return result if isinstance(result, int) else OK
    except (typer.Abort, KeyboardInterrupt):
        typer.echo("\nstopped", err=True)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe, e.g. head, has seen enough
        sys.stderr.close()
        return FAILED
    except Exception as error:
        if isinstance(error, typer.BadParameter.__mro__[2]):  # typer's base of all errors of the command line
            error.show()  # type: ignore[attr-defined]
            return BAD_USE
        # Errors that this package defines are written for the user; anything else is a defect, and its trace is wanted.
        if type(error).__module__.partition(".")[0] != "noria":
            raise
        typer.echo(f"noria: {error}", err=True)
        return _code_of(error)


def _code_of(error: Exception) -> int:
    from noria.artifacts import Interrupted, Unknown
    from noria.evals.task_file import TaskFileError
    from noria.grading.grader_language import GraderError
    from noria.harness.code_file import CodeFileError
    from noria.recipe_errors import RecipeError

    if isinstance(error, Interrupted):
        return INTERRUPTED
    bad_use = RecipeError | TaskFileError | GraderError | CodeFileError | Unknown
    return BAD_USE if isinstance(error, bad_use) else FAILED
