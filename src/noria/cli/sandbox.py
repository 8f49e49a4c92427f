"""The sandbox: noria sandbox check, noria sandbox abuse."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from enum import StrEnum
from queue import SimpleQueue
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noria.cli.app import FAILED, OK, JsonOption, app
from noria.studio.output import console, print_json, progress

if TYPE_CHECKING:
    from noria.sandbox.abuse import Attempt, Mode, Range, Result

sandbox = typer.Typer(
    help="The sandbox that runs a model's code: what holds here, and its abuse suite.", no_args_is_help=True
)
app.add_typer(sandbox, name="sandbox")


PLACES = 2  # attempts at a time; most of the time is waiting for limits of time


class ProfileName(StrEnum):
    LEAST = "least"
    PROGRAMS = "programs"
    BROWSER = "browser"


class KindName(StrEnum):
    BUBBLEWRAP = "bubblewrap"
    LANDLOCK = "landlock"


@sandbox.command(epilog="Example: noria sandbox check --json")
def check(json_: JsonOption = False) -> int:
    """Say which sandboxes this machine gives. Exits with 1 where code can't be run unless the weaker one is allowed."""
    from noria.sandbox import check as examine

    reports = {"bubblewrap": examine("bubblewrap"), "landlock (weaker)": examine("landlock")}
    if json_:
        print_json(reports)
    else:
        for name, report in reports.items():
            state = "[green]yes[/]" if report.available else "[red]no[/]"
            console().print(f"{state:>16}  {name}: {report.version or 'not found'}; {report.detail}")
    return OK if reports["bubblewrap"].available else FAILED


@sandbox.command(epilog="Examples: noria sandbox abuse --profile browser    noria sandbox abuse --kind landlock --json")
def abuse(
    kind: Annotated[KindName, typer.Option("--kind", help="Which sandbox to try.")] = KindName.BUBBLEWRAP,
    profile: Annotated[
        ProfileName, typer.Option("--profile", help="What it shows and allows: see docs/sandbox.md.")
    ] = ProfileName.LEAST,
    only: Annotated[
        str, typer.Option("--class", metavar="NAME", help="Only the classes whose name contains this, e.g. network.")
    ] = "",
    json_: JsonOption = False,
) -> int:
    """Try to break out, spy, exhaust and forge, hundreds of ways. Exits with 1 if any succeeds or proves nothing.

    Takes a minute or two: each limit of time is waited for.
    """
    from noria.sandbox import BROWSER, PROGRAMS, Profile
    from noria.sandbox.abuse import CLASSES, Range

    chosen = {name: attempts for name, attempts in CLASSES.items() if only in name}
    if not chosen:
        raise typer.BadParameter(f"--class {only}: no such class; there are {', '.join(CLASSES)}")
    trials = [
        (name, attempt, mode) for name, attempts in chosen.items() for attempt in attempts for mode in attempt.modes
    ]
    profiles = {each.name: each for each in (Profile(), PROGRAMS, BROWSER)}
    found: list[tuple[str, Result]] = []
    with ExitStack() as stack:
        places = [stack.enter_context(Range(kind.value, profiles[profile.value])) for _ in range(PLACES)]
        free: SimpleQueue[Range] = SimpleQueue()
        for place in places:
            free.put(place)

        def make(trial: tuple[str, Attempt, Mode]) -> tuple[str, Result]:
            place = free.get()
            try:
                return trial[0], place.make(trial[1], trial[2])
            finally:
                free.put(place)

        report = stack.enter_context(progress("attempts", len(trials)))
        for result in stack.enter_context(ThreadPoolExecutor(PLACES)).map(make, trials):
            found.append(result)
            report(len(found), len(trials))
        label = f"{places[0].box.label}, profile {profile.value}"
    bad = any(result.verdict in ("escaped", "unproven") for _, result in found)
    if json_:
        print_json({"sandbox": label, "classes": _counts(found), "results": [_row(*each) for each in found]})
    else:
        _show(label, found)
    return FAILED if bad else OK


VERDICTS = ("held", "escaped", "unproven", "allowed")


def _counts(found: list[tuple[str, Result]]) -> dict[str, dict[str, int]]:
    """class -> verdict -> attempts."""
    counts: dict[str, dict[str, int]] = {}
    for name, result in found:
        of_class = counts.setdefault(name, dict.fromkeys(VERDICTS, 0))
        of_class[result.verdict] += 1
    return counts


def _row(name: str, result: Result) -> dict[str, Any]:
    from dataclasses import asdict

    return {"class": name, **asdict(result)}


def _show(label: str, found: list[tuple[str, Result]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"attempts on {label}", caption="an attempt as a function and one as a program count as two")
    headings = {"held": "denied", "escaped": "succeeded", "unproven": "proves nothing", "allowed": "not promised"}
    table.add_column("class")
    for verdict in VERDICTS:
        table.add_column(headings[verdict], justify="right")
    counts = _counts(found)
    for name, of_class in counts.items():
        table.add_row(name, *(str(of_class[verdict]) for verdict in VERDICTS))
    table.add_section()
    table.add_row("all", *(str(sum(of_class[verdict] for of_class in counts.values())) for verdict in VERDICTS))
    shown = console()
    shown.print(table)
    for name, result in found:
        if result.verdict != "held":
            what = f"{headings[result.verdict]}: {name}: {result.attempt} ({result.mode})"
            shown.print(escape(f"{what}: {result.why}; saw {result.seen!r}"))
