"""Looking after runs and the machine: noria report, runs, doctor, gc."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from noria.cli.app import FAILED, OK, JsonOption, StoreOption, app, make_room, open_existing, open_store
from noria.studio.output import console, print_json
from noria.studio.runs_compare import runs_app

app.add_typer(runs_app, name="runs")


@app.command(epilog="Example: noria report --out report.html")
def report(
    name: Annotated[str | None, typer.Argument(metavar="RUN", help="A run's name; the latest if left out.")] = None,
    out: Annotated[Path, typer.Option("--out", help="The HTML file to write.")] = Path("report.html"),
    store: StoreOption = None,
    json_: JsonOption = False,
) -> int:
    """Write what every stage did as one HTML file that works offline."""
    from noria.studio import report as pages

    opened = open_existing(store)
    if json_:
        return print_json(pages.data(opened, name))
    make_room(out)
    pages.write(opened, name, out)
    typer.echo(f"{out} written; open it in a browser")
    return OK


@app.command(epilog="Example: noria doctor --json")
def doctor(store: StoreOption = None, json_: JsonOption = False) -> int:
    """Say what this machine can and can't do. Exits with 1 where a run of all stages would fail."""
    from noria.studio import show
    from noria.studio.doctor import examine

    facts = examine(open_store(store).root)
    if json_:
        print_json(facts)
    else:
        show.facts(console(), facts)
    return FAILED if any(fact.status == "bad" for fact in facts) else OK


@app.command(epilog="Example: noria gc --apply")
def gc(
    apply: Annotated[bool, typer.Option("--apply", help="Delete it; without, it is only shown.")] = False,
    store: StoreOption = None,
    json_: JsonOption = False,
) -> int:
    """Show, and with --apply free, what no alias, no next run of a recipe and no outside origin needs."""
    from noria.artifacts.gc import collect, held
    from noria.studio import show

    opened = open_existing(store)
    found = collect(opened, apply=apply)
    kept = held(opened)
    if json_:
        return print_json({"garbage": found, "held": kept})
    show.garbage(console(), found, apply)
    show.held(console(), kept)
    return OK
