"""Where things come from and go to: noria why, noria lineage, noria forget."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from noria.cli.app import OK, JsonOption, StoreOption, app, open_existing, open_store
from noria.studio.output import console, print_json


class Forgettable(StrEnum):
    SOURCE = "source"
    USER = "user"


@app.command(epilog="Example: noria why release/prod")
def why(
    reference: Annotated[str, typer.Argument(metavar="KEY", help="A key (or its start), an alias, or a step's name.")],
    store: StoreOption = None,
    json_: JsonOption = False,
) -> int:
    """Tell how and why an artifact was made: configuration, inputs, numbers, the runs that used it."""
    from noria.artifacts import why as explain
    from noria.studio import show

    opened = open_existing(store)
    found = explain(opened, opened.resolve(reference))
    if json_:
        return print_json(show.why_json(found))
    show.why(console(), found)
    return OK


@app.command(epilog="Examples: noria lineage release/prod --upstream    noria lineage networkx_code --downstream")
def lineage(
    reference: Annotated[
        str, typer.Argument(metavar="KEY|SOURCE", help="A key, alias or step; with --downstream also a source.")
    ],
    upstream: Annotated[bool, typer.Option("--upstream", help="Where it came from (the default).")] = False,
    downstream: Annotated[bool, typer.Option("--downstream", help="All that it reached, releases too.")] = False,
    user: Annotated[
        bool, typer.Option("--user", help="The name is a user of the traffic; means --downstream.")
    ] = False,
    document: Annotated[
        str, typer.Option("--document", metavar="ID", help="Only quote this document; the start of its id does.")
    ] = "",
    records: Annotated[
        int | None, typer.Option("--records", min=0, help="With --upstream: quote so many records; 5 if not given.")
    ] = None,
    store: StoreOption = None,
    json_: JsonOption = False,
) -> int:
    """Follow an artifact down to the records in raw files, or a source up to every release that saw it."""
    from noria.artifacts import StoreError, Unknown
    from noria.artifacts import lineage as graph
    from noria.studio import show
    from noria.studio.lookup import dependents, is_artifact, reached_by_user

    downstream = downstream or user
    if upstream and downstream:
        raise typer.BadParameter(f"give either --upstream or {'--user' if user else '--downstream'}")
    if downstream and (document or records is not None):
        raise typer.BadParameter("--document and --records quote what lies upstream; leave out --downstream or --user")
    opened = open_existing(store)
    if not downstream:
        try:
            key = opened.resolve(reference)
        except Unknown as error:
            hint = f"If {reference} is a source, add --downstream; if a user, --user"
            raise Unknown(f"{error}. {hint}") from None
        if document:
            record = graph.quote(opened, key, document)
            if json_:
                return print_json({"records": [record]})
            show.record(console(), record)
            return OK
        found = graph.upstream(opened, key)
        files = graph.raw_records(opened, key)
        quoted = graph.origins(opened, key, limit=5 if records is None else records)
        if json_:
            return print_json({"artifacts": found, "raw_files": files, "records": quoted})
        show.upstream(console(), found, files, quoted)
        return OK
    try:
        reached = reached_by_user(opened, reference) if user else graph.downstream(opened, reference)
    except StoreError:
        if user or not is_artifact(opened, reference):
            raise
        later = dependents(opened, opened.resolve(reference))
        if json_:
            return print_json({"artifacts": later})
        show.manifests(console(), later)
        return OK
    if json_:
        return print_json(reached)
    show.reached(console(), reference, reached)
    return OK


@app.command(
    epilog="Examples: noria forget source chatterbot --reason 'no licence'    noria forget user jane --delete-rows"
)
def forget(
    what: Annotated[Forgettable, typer.Argument(help="What NAME is.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The source or the user.")],
    reason: Annotated[str, typer.Option("--reason", help="Kept with the marks.")] = "",
    delete_rows: Annotated[
        bool, typer.Option("--delete-rows", help="Of a user: delete what the traffic log holds, too.")
    ] = False,
    traffic: Annotated[Path | None, typer.Option(help="The traffic log; <store>/traffic.sqlite if not given.")] = None,
    store: StoreOption = None,
    json_: JsonOption = False,
) -> int:
    """List and mark all that a source or user reached. No artifact is deleted: they stay marked until made anew.

    Of a user it also says how many requests the traffic log holds; --delete-rows deletes them.
    """
    from noria.artifacts import lineage as graph
    from noria.studio import show
    from noria.studio.lookup import forget_user

    if what is Forgettable.USER:
        opened = open_store(store)
        user = forget_user(opened, name, reason, traffic or opened.root / "traffic.sqlite", delete_rows)
        if json_:
            return print_json(user)
        show.forgotten_user(console(), user)
        return OK
    if delete_rows or traffic:
        raise typer.BadParameter("--delete-rows and --traffic are for a user; a source has no rows in the traffic log")
    reached = graph.forget(open_existing(store), "source", name, reason)
    if json_:
        return print_json(reached)
    show.reached(console(), name, reached)
    show.marked(console())
    return OK
