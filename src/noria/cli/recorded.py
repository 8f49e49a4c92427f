"""Traces of foreign agents: noria recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from noria.cli.app import OK, JsonOption, app, make_room
from noria.studio.output import console, print_json


@app.command(epilog="Example: noria serve release/prod --record agents; then noria recorded agents --out traces.jsonl")
def recorded(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `noria serve --record DIR` wrote.")],
    out: Annotated[Path | None, typer.Option(help="Write the traces here, one JSON object a line.")] = None,
    json_: JsonOption = False,
) -> int:
    """List the traces that foreign agents left, or write them out for training, grading and browsing."""
    from noria.harness.recording import recorded_traces

    traces = recorded_traces(folder)
    if out:
        make_room(out)
        out.write_text("".join(trace.to_json() + "\n" for trace in traces), encoding="utf-8")
    rows = [
        {"id": one.id, "task": one.task_id, "outcome": one.outcome, "nodes": len(one.nodes), **one.facts}
        for one in traces
    ]
    if json_:
        return print_json(rows)
    for row in rows:
        console().print(
            "  ".join(
                f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
            ),
            highlight=False,
            soft_wrap=True,
        )
    return OK
