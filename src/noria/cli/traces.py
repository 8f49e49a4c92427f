"""Traces kept by rollouts: noria traces list | show | replay | reexecute | regrade | export | view."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noria.cli.app import FAILED, OK, JsonOption, StoreOption, app, make_room, open_store
from noria.studio.output import console, print_json, progress

if TYPE_CHECKING:
    from noria.harness.traces import Entry, Library
    from noria.studio.traces.place import Given, Place

traces = typer.Typer(help="Traces of agents: list, look at, replay, run again, grade again.", no_args_is_help=True)
app.add_typer(traces, name="traces")

PlaceArgument = Annotated[
    str, typer.Argument(metavar="PLACE", help="A folder with traces, or an artifact: key, alias or step's name.")
]
OneArgument = Annotated[str, typer.Argument(metavar="TRACE", help="Its number in the list, or the start of its id.")]
TraceOption = Annotated[str, typer.Option("--trace", metavar="TRACE", help="Only this one: its number, or id's start.")]
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
    with _opened(place, store) as (_, library):
        total, rows = library.count(query), library.rows(query, limit, (page - 1) * limit)
        damages = [str(damage) for damage in library.damages()]
    if json_:
        return print_json({"total": total, "traces": rows, "damages": damages})
    _show_rows(rows)
    console().print(f"{len(rows)} of {total:,} traces", style="dim")
    for damage in damages[:5]:
        console().print(f"left out: {damage}", style="yellow", markup=False)
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
    """Show one trace: its messages, tool calls and results, score and budget. --json gives all of it."""
    from noria.studio.traces.place import Given, tokenizer_of
    from noria.studio.traces.plain import print_trace

    with _opened(place, store) as (found, library):
        entry = library.entry(_found(library, trace))
        if json_:
            print(json.dumps({**asdict(entry)}))
            return OK
        print_trace(console(), entry, tokenizer_of(found, Given(tokenizer)) if tokens else None, tokens)
    return OK


@traces.command(epilog="Example: noria traces replay agent_evaluation. Exit codes: 0 all replay exactly; 1 not all.")
def replay(
    place: PlaceArgument,
    trace: TraceOption = "",
    family: FamilyOption = "",
    outcome: OutcomeOption = "",
    limit: LimitOption = 1_000_000,
    tokenizer: TokenizerOption = None,
    environment: EnvironmentOption = None,
    program: ProgramOption = None,
    turns: TurnsOption = None,
    tokens_per_turn: TokensOption = None,
    context: ContextOption = None,
    store: StoreOption = None,
    json_: JsonOption = False,
) -> int:
    """Play traces again from tape: the program must show the model the same tokens at every turn."""
    from noria.harness.traces import ReplayMismatch
    from noria.harness.traces import replay as play
    from noria.studio.traces.place import Given

    given = Given(tokenizer, environment, program, turns, tokens_per_turn, context)
    failed: list[dict[str, Any]] = []
    with _opened(place, store) as (found, library):
        chosen = _chosen(library, trace, family, outcome, limit)
        for number, entry, made in _each(library, found, given, chosen):
            try:
                play(
                    made.task,
                    entry.trace,
                    made.tokenizer,
                    made.program,
                    made.budget,
                    tools=made.environment.tools,
                    subagents=made.subagents,
                )
            except ReplayMismatch as mismatch:
                failed.append({"number": number, "id": entry.trace.id, "mismatch": str(mismatch)})
    if json_:
        print_json({"replayed": len(chosen), "mismatches": failed})
    else:
        for one in failed[:20]:
            console().print(f"#{one['number']}: {one['mismatch']}", markup=False)
        console().print(f"{len(chosen) - len(failed)} of {len(chosen)} traces replay exactly")
    return FAILED if failed or not chosen else OK


@traces.command(epilog="Example: noria traces reexecute agent_evaluation --limit 100. Exit codes: 0 equal; 1 not.")
def reexecute(
    place: PlaceArgument,
    trace: TraceOption = "",
    family: FamilyOption = "",
    outcome: OutcomeOption = "",
    limit: LimitOption = 1_000_000,
    tokenizer: TokenizerOption = None,
    environment: EnvironmentOption = None,
    program: ProgramOption = None,
    turns: TurnsOption = None,
    tokens_per_turn: TokensOption = None,
    context: ContextOption = None,
    store: StoreOption = None,
    json_: JsonOption = False,
) -> int:
    """Run every tool call again with real tools, in the sandbox, and compare result by result.

    Results that were recorded as not deterministic may vary; they are counted apart.
    """
    from noria.harness.traces import ReplayMismatch
    from noria.harness.traces import reexecute as execute
    from noria.studio.traces.place import Given

    given = Given(tokenizer, environment, program, turns, tokens_per_turn, context)
    counts = {"equal": 0, "varied": 0, "differs": 0, "failed": 0, "off_tape": 0}
    listed: list[dict[str, Any]] = []
    with _opened(place, store) as (found, library):
        chosen = _chosen(library, trace, family, outcome, limit)
        for number, entry, made in _each(library, found, given, chosen):
            try:
                reruns = execute(
                    made.task,
                    entry.trace,
                    made.tokenizer,
                    made.program,
                    made.budget,
                    made.tools(),
                    subagents=made.subagents,
                )
            except ReplayMismatch as mismatch:
                counts["off_tape"] += 1
                listed.append({"number": number, "verdict": "off_tape", "now": str(mismatch)})
                continue
            for rerun in reruns:
                counts[rerun.verdict] += 1
                if rerun.verdict != "equal":
                    listed.append({"number": number, **asdict(rerun)})
    if json_:
        print_json({"traces": len(chosen), **counts, "results": listed})
    else:
        for one in listed[:20]:
            told = f"{one.get('tool', '')} recorded {str(one.get('recorded', ''))[:80]!r}, now {one['now'][:200]!r}"
            console().print(f"#{one['number']} {one['verdict']}: {told}", markup=False)
        said = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count) or "no call"
        console().print(f"{len(chosen)} traces: {said}")
    return FAILED if not chosen or counts["differs"] + counts["failed"] + counts["off_tape"] else OK


@traces.command(epilog="Example: noria traces regrade agent_rl --out regraded. Exit codes: 0 scores alike; 1 changed.")
def regrade(
    place: PlaceArgument,
    family: FamilyOption = "",
    outcome: OutcomeOption = "",
    environment: EnvironmentOption = None,
    out: Annotated[Path | None, typer.Option(file_okay=False, help="A new folder for traces with new scores.")] = None,
    store: StoreOption = None,
    json_: JsonOption = False,
) -> int:
    """Grade traces again with the environment's grader as it is now, and say what changed."""
    from noria.harness.traces import Query, TraceWriter
    from noria.studio.traces.place import Given
    from noria.studio.traces.regrading import regraded

    if out is not None and out.exists() and any(out.iterdir()):
        raise typer.BadParameter(f"{out} is not empty; name a new folder")
    changed: list[dict[str, Any]] = []
    total = 0
    with _opened(place, store) as (_, library):
        writer = TraceWriter(out) if out else None
        query = Query(family=family, outcome=outcome)
        with progress("traces", library.count(query)) as report:
            for batch in regraded(library, query, Given(environment=environment)):
                total += len(batch)
                changed += [one.change() for one in batch if one.changed]
                if writer:
                    writer.append(one.entry for one in batch)
                report(total, library.count(query))
        if writer:
            writer.close()
    if json_:
        print_json({"traces": total, "changed": changed})
    else:
        for one in changed[:20]:
            console().print(f"#{one['number']}: {one['before']} before, {one['now']} now", markup=False)
        console().print(f"{total - len(changed)} of {total} traces have the same score")
    return FAILED if changed or not total else OK


@traces.command(epilog="Example: noria traces export agent_evaluation log.eval --format inspect --limit 100")
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
    with _opened(place, store) as (found, library):
        numbers = _chosen(library, trace, family, outcome, limit)
        if format_ is Format.HTML:
            if len(numbers) != 1:
                raise typer.BadParameter("html writes one trace: choose it with --trace")
            exporting.html(out, library, numbers[0], tokenizer_of(found, Given(tokenizer)))
        else:
            with progress("traces", len(numbers)) as report:
                entries = exporting.counted(library, numbers, report)
                exporting.write(format_.value, out, entries, found.title, model, tokens)
    typer.echo(f"{out}: {len(numbers)} {'trace' if len(numbers) == 1 else 'traces'}")
    return OK


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

    with _opened(place, store) as (found, library):
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


@contextmanager
def _opened(reference: str, root: Path | None) -> Iterator[tuple[Place, Library]]:
    from noria.artifacts import Unknown
    from noria.harness.traces import Library, TraceFileError
    from noria.studio.traces.place import find_place

    try:
        place = find_place(reference, open_store(root))
        with progress("bytes indexed", 1) as report:
            library = Library(place.folder, report=report)
    except TraceFileError as error:
        raise Unknown(str(error)) from error
    with library:
        yield place, library


def _found(library: Library, trace: str) -> int:
    from noria.artifacts import Unknown
    from noria.harness.traces import TraceFileError

    try:
        return library.find(trace)
    except TraceFileError as error:
        raise Unknown(str(error)) from error


def _chosen(library: Library, trace: str, family: str, outcome: str, limit: int) -> list[int]:
    from noria.harness.traces import Query

    if trace:
        return [_found(library, trace)]
    return library.numbers(Query(family=family, outcome=outcome), limit)


def _each(library: Library, place: Place, given: Given, numbers: list[int]) -> Iterator[tuple[int, Entry, Any]]:
    from noria.studio.traces.again import Workshop

    with Workshop(place, given) as workshop, progress("traces", len(numbers)) as report:
        for done, number in enumerate(numbers, 1):
            entry = library.entry(number)
            yield number, entry, workshop.made(entry)
            report(done, len(numbers))


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
