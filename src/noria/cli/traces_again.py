"""Whether traces still hold: noria traces replay | reexecute | regrade."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from noria.cli.app import FAILED, OK, JsonOption, StoreOption
from noria.cli.trace_place import (
    Again,
    EnvironmentOption,
    FamilyOption,
    OutcomeOption,
    PlaceArgument,
    asked_again,
    checked,
    chosen,
    damages_of,
    each,
    opened,
    tell,
)
from noria.cli.traces import traces
from noria.studio.output import console, print_json, progress

KINDS = 20  # of failures, told in words


@traces.command(
    epilog="Example: noria traces replay agent_evaluation. Exit codes: 0 all replay exactly; 1 not, or not all read."
)
@asked_again
def replay(again: Again) -> int:
    """Play traces again from tape: the program must show the model the same tokens at every turn."""
    from noria.harness.traces import ReplayMismatch
    from noria.harness.traces import replay as play

    failed: list[dict[str, Any]] = []
    with opened(again.place, again.store) as (found, library):
        numbers = chosen(library, again.trace, again.family, again.outcome, again.limit)
        damages = damages_of(library, again.trace)
        for number, entry, made in each(library, found, again.given, numbers):
            try:
                play(
                    made.task,
                    entry.trace,
                    made.tokenizer,
                    made.program,
                    made.budget,
                    tools=made.environment.tools,
                    policy=made.policy,
                    subagents=made.subagents,
                )
            except ReplayMismatch as mismatch:
                failed.append({"number": number, "id": entry.trace.id, "mismatch": str(mismatch)})
    if again.json_:
        print_json({"replayed": len(numbers), "mismatches": failed, "damages": damages})
    else:
        _tell_alike([(one["number"], one["mismatch"]) for one in failed])
        console().print(f"{len(numbers) - len(failed)} of {len(numbers)} traces replay exactly")
        tell(damages)
    return FAILED if failed or damages or not numbers else OK


@traces.command(
    epilog="Example: noria traces reexecute agent_evaluation --limit 100. Exit codes: 0 equal; 1 not, or not all read."
)
@asked_again
def reexecute(again: Again) -> int:
    """Run every tool call again with real tools, in the sandbox, and compare result by result.

    Results that were recorded as not deterministic may vary; they are counted apart.
    """
    from noria.harness.traces import ReplayMismatch
    from noria.harness.traces import reexecute as execute

    counts = {"equal": 0, "varied": 0, "differs": 0, "failed": 0, "off_tape": 0}
    listed: list[dict[str, Any]] = []
    with opened(again.place, again.store) as (found, library):
        numbers = chosen(library, again.trace, again.family, again.outcome, again.limit)
        damages = damages_of(library, again.trace)
        for number, entry, made in each(library, found, again.given, numbers):
            try:
                reruns = execute(
                    made.task,
                    entry.trace,
                    made.tokenizer,
                    made.program,
                    made.budget,
                    made.tools(),
                    policy=made.policy,
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
    if again.json_:
        print_json({"traces": len(numbers), **counts, "results": listed, "damages": damages})
    else:
        _tell_alike([(one["number"], _told(one)) for one in listed])
        said = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count) or "no call"
        console().print(f"{len(numbers)} traces: {said}")
        tell(damages)
    return FAILED if damages or not numbers or counts["differs"] + counts["failed"] + counts["off_tape"] else OK


def _told(one: dict[str, Any]) -> str:
    if one["verdict"] == "off_tape":
        return f"off tape: {one['now']}"
    return f"{one['verdict']}: {one['tool']} recorded {one['recorded'][:80]!r}, now {one['now'][:200]!r}"


def _tell_alike(reasons: Sequence[tuple[int, str]]) -> None:
    """A line for all traces with one reason: how many, the numbers of the first, the reason of the first.

    Reasons that differ in digits and digests alone count as alike, results of a tool among them: "7, now 8" and
    "7, now 9" are one. Of more than KINDS, the rest are counted.
    """
    alike: dict[str, list[tuple[int, str]]] = {}
    for number, reason in reasons:
        alike.setdefault(re.sub(r"[0-9a-f]*\d[0-9a-f]*", "", reason), []).append((number, reason))
    for found in list(alike.values())[:KINDS]:
        numbers = list(dict.fromkeys(f"#{number}" for number, _ in found))
        shown = ", ".join([*numbers[:3], *(["..."] if len(numbers) > 3 else [])])
        times = f"{len(found)} times alike, in {shown}; the first" if len(found) > 1 else shown
        console().print(f"{times}: {found[0][1]}", markup=False)
    if len(alike) > KINDS:
        console().print(f"and {len(alike) - KINDS} more kinds; --json has all")


@traces.command(
    epilog="Example: noria traces regrade agent_rl --out again. Exit codes: 0 scores alike; 1 changed, or not all read."
)
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
    given = Given(environment=environment)
    given.check()
    changed: list[dict[str, Any]] = []
    total = 0
    with opened(place, store) as (_, library):
        query = checked(library, Query(family=family, outcome=outcome))
        damages = damages_of(library)
        writer = TraceWriter(out) if out else None
        with progress("traces", library.count(query)) as report:
            for batch in regraded(library, query, given):
                total += len(batch)
                changed += [one.change() for one in batch if one.changed]
                if writer:
                    writer.append(one.entry for one in batch)
                report(total, library.count(query))
        if writer:
            writer.close()
    if json_:
        print_json({"traces": total, "changed": changed, "damages": damages})
    else:
        for one in changed[:20]:
            console().print(f"#{one['number']}: {one['before']} before, {one['now']} now", markup=False)
        console().print(f"{total - len(changed)} of {total} traces have the same score")
        tell(damages)
    return FAILED if changed or damages or not total else OK
