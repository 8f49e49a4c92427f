"""Traces kept by rollouts: noria traces list | show | export | view."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from noria.cli.app import FAILED, OK, JsonOption, StoreOption, app, make_room
from noria.cli.trace_place import (
    FamilyOption,
    LimitOption,
    OutcomeOption,
    PlaceArgument,
    TokenizerOption,
    TraceOption,
    checked,
    chosen,
    damages_of,
    opened,
    tell,
)
from noria.studio.output import console, print_json, progress

traces = typer.Typer(help="Traces of agents: list, look at, replay, run again, grade again.", no_args_is_help=True)
app.add_typer(traces, name="traces")

OneArgument = Annotated[
    str,
    typer.Argument(
        metavar="TRACE", help="Its number in `noria traces list` (# there, from 1), or the start of its id."
    ),
]


class Format(StrEnum):
    ATIF = "atif"
    INSPECT = "inspect"
    JSONL = "jsonl"
    HTML = "html"


@traces.command(
    "list", epilog="Example: noria traces list agent_rl --outcome finished --score-max 0 --order tokens --falling"
)
def list_(
    place: PlaceArgument,
    family: FamilyOption = "",
    outcome: OutcomeOption = "",
    harness: Annotated[str, typer.Option(help="Only of this harness program, e.g. files@0123456789ab.")] = "",
    tool: Annotated[str, typer.Option(help="Only traces that called this tool.")] = "",
    text: Annotated[str, typer.Option(help="Words that all occur in the messages; each may go on.")] = "",
    status: Annotated[str, typer.Option(help="Of the grading: graded, failed, none.")] = "",
    score_min: Annotated[float | None, typer.Option(help="Only scores from here.")] = None,
    score_max: Annotated[float | None, typer.Option(help="Only scores up to here.")] = None,
    step: Annotated[int | None, typer.Option(help="Only rollouts of this RL step.")] = None,
    order: Annotated[str, typer.Option(help="number, score, step, turns, tokens or tool_calls.")] = "number",
    falling: Annotated[bool, typer.Option("--falling", help="Largest first.")] = False,
    limit: LimitOption = 20,
    page: Annotated[int, typer.Option(min=1, help="Which page of --limit traces.")] = 1,
    store: StoreOption = None,
    json_: JsonOption = False,
) -> int:
    """List traces, filtered and sorted, without reading them. The first time an index is made."""
    from noria.harness.traces import Query

    try:
        query = Query(
            family=family,
            outcome=outcome,
            harness=harness,
            tool=tool,
            status=status,
            text=text,
            score_min=score_min,
            score_max=score_max,
            step_min=step,
            step_max=step,
            order=order,  # type: ignore[arg-type]
            descending=falling,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    with opened(place, store) as (_, library):
        total, rows = library.count(checked(library, query)), library.rows(query, limit, (page - 1) * limit)
        damages = damages_of(library)
    if json_:
        return print_json({"total": total, "traces": rows, "damages": damages})
    _show_rows(rows)
    console().print(f"{len(rows)} of {total:,} traces; # is the number that the other commands take", style="dim")
    tell(damages)
    return OK


@traces.command(epilog="Example: noria traces show agent_evaluation 12")
def show(
    place: PlaceArgument,
    trace: OneArgument,
    tokens: Annotated[bool, typer.Option("--tokens", help="Also each sampled token with its log-probability.")] = False,
    tokenizer: TokenizerOption = None,
    store: StoreOption = None,
    json_: JsonOption = False,
) -> int:
    """Show one trace: its messages, numbered from 0, calls and results, score and budget. --json gives all of it."""
    from noria.studio.traces.place import Given, tokenizer_of
    from noria.studio.traces.plain import print_trace

    with opened(place, store) as (found, library):
        entry = library.entry(library.find(trace))
        if json_:
            print(json.dumps({**asdict(entry)}))
            return OK
        print_trace(console(), entry, tokenizer_of(found, Given(tokenizer)) if tokens else None, tokens)
    return OK


@traces.command(
    epilog="Example: noria traces export agent_evaluation log.eval --format inspect --limit 100. "
    "Exit codes: 0 written; 1 written without what could not be read."
)
def export(
    place: PlaceArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="inspect: a .eval file; html: a file; else a new folder.")],
    format_: Annotated[Format, typer.Option("--format", help="What to write.")] = Format.ATIF,
    trace: TraceOption = "",
    family: FamilyOption = "",
    outcome: OutcomeOption = "",
    limit: LimitOption = 1_000_000,
    model: Annotated[str, typer.Option(help="The model's name to write.")] = "noria",
    tokens: Annotated[bool, typer.Option("--tokens/--no-tokens", help="Token ids and log-probabilities.")] = True,
    tokenizer: TokenizerOption = None,
    store: StoreOption = None,
) -> int:
    """Write traces for other tools: ATIF (Harbor), Inspect's .eval, JSON Lines, or one trace as a page of its own."""
    from noria.studio.traces import exporting
    from noria.studio.traces.place import Given, tokenizer_of

    if format_ in (Format.ATIF, Format.JSONL) and out.exists() and (out.is_file() or any(out.iterdir())):
        raise typer.BadParameter(f"{out} is there already; name a new folder")
    if format_ is Format.INSPECT and out.suffix != ".eval":
        raise typer.BadParameter("Inspect reads files whose name ends in .eval; name OUT so")
    if format_ in (Format.INSPECT, Format.HTML):
        make_room(out)
    with opened(place, store) as (found, library):
        numbers, damages = chosen(library, trace, family, outcome, limit), damages_of(library, trace)
        if format_ is Format.HTML:
            if len(numbers) != 1:
                raise typer.BadParameter("html writes one trace: choose it with --trace")
            exporting.html(out, library, numbers[0], tokenizer_of(found, Given(tokenizer)))
        else:
            with progress("traces", len(numbers)) as report:
                entries = exporting.counted(library, numbers, report)
                exporting.write(format_.value, out, entries, found.title, model, tokens)
    typer.echo(f"{out}: {len(numbers)} {'trace' if len(numbers) == 1 else 'traces'}")
    tell(damages)
    return FAILED if damages else OK


@traces.command(epilog="Example: noria traces view agent_rl --port 8100")
def view(
    place: PlaceArgument,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8100,
    tokenizer: TokenizerOption = None,
    store: StoreOption = None,
) -> int:
    """Browse traces in a web page on this machine (127.0.0.1 only). A run that still writes is followed."""
    from noria.studio.traces import serve
    from noria.studio.traces.place import Given, tokenizer_of

    with opened(place, store) as (found, library):
        spelled = tokenizer_of(found, Given(tokenizer))
        pieces: Callable[[int], str] | None = (lambda token: spelled.decode([token])) if spelled else None
        try:
            serve(
                library,
                found.title,
                port,
                pieces,
                lambda url: typer.echo(f"{library.count():,} traces at {url}; Ctrl-C stops"),
            )
        except OSError as error:
            raise typer.BadParameter(f"port {port}: {error.strerror}; choose another with --port") from error
    return OK


def _show_rows(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("#", "id", "family", "outcome", "score", "step", "calls", "tokens", "question", box=None)
    for row in rows:
        score = "failed" if row["status"] == "failed" else "–" if row["score"] is None else f"{row['score']:.3f}"
        step = "" if row["step"] is None else str(row["step"])
        shown = (row["number"], row["id"][:12], row["family"], row["outcome"], score, step, row["turns"], row["tokens"])
        question = Text(" ".join(row["question"].split())[:60])
        table.add_row(*(Text(str(value)) for value in shown), question)
    console().print(table)
