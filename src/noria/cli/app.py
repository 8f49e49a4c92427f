"""What all commands share: the application, its options and exit codes, the store that they open."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from noria.artifacts import Step, Store
    from noria.recipe import OpenModelRecipe, Recipe

OK, FAILED, BAD_USE, NOT_RELEASED, INTERRUPTED = 0, 1, 2, 3, 130

app = typer.Typer(
    help="The whole LLM training chain, from raw text to a deployed model and back.",
    epilog="Exit codes: 0 done; 1 failed; 2 bad use (recipe, argument, unknown name); 3 not better "
    "(rft), not released (run --require-release); 130 stopped by Ctrl-C. Example: noria run recipes/nano.toml",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe in TOML.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Change a field of the recipe; may be repeated."),
]
TurnOption = Annotated[int, typer.Option("--turn", min=1, help="Which turn of the wheel; 2 uses what turn 1 learned.")]
TrafficOption = Annotated[
    Path | None,
    typer.Option(
        "--traffic",
        metavar="LOG",
        exists=True,
        dir_okay=False,
        help="A log of `noria serve` for this turn to learn from, from turn 2 on.",
    ),
]
StoreOption = Annotated[
    Path | None, typer.Option("--store", envvar="NORIA_STORE", help="Folder of the artifacts; ./store if not given.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value for scripts.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"noria {version('noria')}")
        except PackageNotFoundError:
            typer.echo("noria, not installed: run from its sources")
        raise typer.Exit


@app.callback()
def _all_commands(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:  # without a docstring: the help of `app` stays
    pass


def open_store(root: Path | None) -> Store:
    from noria.artifacts import Store

    store = Store(root)
    if store.root.exists() and not store.root.is_dir():
        raise typer.BadParameter(f"the store {store.root} is a file, not a folder; choose another with --store")
    return store


def open_existing(root: Path | None) -> Store:
    """For commands that look at what was made: a mistyped --store is no empty one."""
    from noria.artifacts import Unknown

    store = open_store(root)
    if not store.exists():
        raise Unknown(f"no store at {store.root}: `noria run RECIPE` makes one, --store or NORIA_STORE names another")
    return store


def json_object(text: str, name: str) -> dict[str, Any]:
    """The JSON object that the argument `name` spells."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"{name} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{name} must be a JSON object, not {text:.60}")
    return found


def make_room(out: Path) -> None:
    """Make the folder that a file is to be written in, before the work whose result it is."""
    if out.is_dir():
        raise typer.BadParameter(f"--out {out} is a folder; name a file in it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"--out {out}: {error.strerror}") from error
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise typer.BadParameter(f"--out {out}: no permission to write there")


def load_steps(
    path: Path, overrides: list[str] | None, turn: int, store: Store
) -> tuple[Recipe | OpenModelRecipe, list[Step]]:
    from noria.assembly import build
    from noria.recipe import load

    recipe = load(path, overrides or [])
    return recipe, build(recipe, turn, store)
