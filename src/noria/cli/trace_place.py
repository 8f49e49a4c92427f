"""What the commands of `noria traces` share: the place, the choice of traces in it, and what is told of damage."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from noria.cli.app import JsonOption, StoreOption, open_store
from noria.studio.output import console, progress

if TYPE_CHECKING:
    from noria.harness.traces import Entry, Library, Query
    from noria.studio.traces.again import Made
    from noria.studio.traces.place import Given, Place

PlaceArgument = Annotated[
    str, typer.Argument(metavar="PLACE", help="A folder with traces, or an artifact: key, alias or step's name.")
]
TraceOption = Annotated[
    str, typer.Option("--trace", metavar="TRACE", help="Only this one: its number in the list (from 1), or id's start.")
]
FamilyOption = Annotated[str, typer.Option(help="Only tasks of this family.")]
OutcomeOption = Annotated[str, typer.Option(help="Only traces that ended so: finished, truncated, tool_limit, ...")]
LimitOption = Annotated[int, typer.Option(min=1, help="At most so many.")]
TokenizerOption = Annotated[
    Path | None, typer.Option(exists=True, help="tokenizer.json or a model's folder; found by itself for artifacts.")
]
EnvironmentOption = Annotated[
    str | None, typer.Option(help="Environment by name or .py file; that named like the task's family if not given.")
]
ProgramOption = Annotated[str | None, typer.Option(help="Harness program by name or .py file; the recorded if not.")]
TurnsOption = Annotated[int | None, typer.Option(min=1, help="Budget: model calls; the recorded if not given.")]
TokensOption = Annotated[int | None, typer.Option(min=1, help="Budget: sampled tokens a call.")]
ContextOption = Annotated[int | None, typer.Option(min=1, help="Budget: the model's context in tokens.")]
DAMAGES_SHOWN = 5


@dataclass(frozen=True)
class Again:
    """Which traces are to be run again, and with what they were made where that is not recorded."""

    place: PlaceArgument
    trace: TraceOption = ""
    family: FamilyOption = ""
    outcome: OutcomeOption = ""
    limit: LimitOption = 1_000_000
    tokenizer: TokenizerOption = None
    environment: EnvironmentOption = None
    program: ProgramOption = None
    turns: TurnsOption = None
    tokens_per_turn: TokensOption = None
    context: ContextOption = None
    store: StoreOption = None
    json_: JsonOption = False

    @property
    def given(self) -> Given:
        from noria.studio.traces.place import Given

        return Given(self.tokenizer, self.environment, self.program, self.turns, self.tokens_per_turn, self.context)


def asked_again(command: Callable[[Again], int]) -> Callable[..., int]:
    """`command` with the fields of `Again` as its arguments and options."""

    @wraps(command)
    def with_options(**options: Any) -> int:
        again = Again(**options)
        again.given.check()
        return command(again)

    with_options.__signature__ = inspect.signature(Again, eval_str=True)  # type: ignore[attr-defined]
    with_options.__annotations__ = get_type_hints(Again, include_extras=True)
    return with_options


@contextmanager
def opened(reference: str, root: Path | None) -> Iterator[tuple[Place, Library]]:
    """Raises Unknown where the place, or a trace that is asked for in the block, is not there."""
    from noria.artifacts import Unknown
    from noria.harness.traces import Library, TraceFileError
    from noria.studio.traces.place import find_place

    try:
        place = find_place(reference, open_store(root))
        with progress("bytes indexed", 1) as report:
            library = Library(place.folder, report=report)
        with library:
            yield place, library
    except TraceFileError as error:
        raise Unknown(str(error)) from error


def checked(library: Library, query: Query) -> Query:
    """`query`, of whose values each means something here. Raises BadParameter with those that there are."""
    try:
        library.check(query)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return query


def chosen(library: Library, trace: str, family: str, outcome: str, limit: int) -> list[int]:
    from noria.harness.traces import Query

    if trace:
        return [library.find(trace)]
    return library.numbers(checked(library, Query(family=family, outcome=outcome)), limit)


def each(library: Library, place: Place, given: Given, numbers: list[int]) -> Iterator[tuple[int, Entry, Made]]:
    """Each trace with what it takes to run it again."""
    from noria.studio.traces.again import Workshop

    with Workshop(place, given) as workshop, progress("traces", len(numbers)) as report:
        for done, number in enumerate(numbers, 1):
            entry = library.entry(number)
            yield number, entry, workshop.made(entry)
            report(done, len(numbers))


def damages_of(library: Library, trace: str = "") -> list[str]:
    """What can't be read; nothing where one `trace` was chosen, which was read."""
    return [] if trace else [str(damage) for damage in library.damages()]


def tell(damages: Sequence[str]) -> None:
    for damage in damages[:DAMAGES_SHOWN]:
        console().print(f"left out: {damage}", style="yellow", markup=False)
    if len(damages) > DAMAGES_SHOWN:
        console().print(f"left out: {len(damages) - DAMAGES_SHOWN} more parts", style="yellow")
