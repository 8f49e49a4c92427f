"""The commands: noria run | plan | why | lineage | forget | eval | chat | serve | report | runs | doctor | gc.

A command loads what it needs when it is called, so that the quick ones stay quick. An error that noria raises itself is
a message for the user; only a defect gives a traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noria.studio.output import console, print_json
from noria.studio.runs_compare import runs_app

if TYPE_CHECKING:
    from noria.artifacts import Artifact, Step, Store
    from noria.recipe import Recipe


class Forgettable(StrEnum):
    SOURCE = "source"
    USER = "user"


OK, FAILED, BAD_USE, NOT_RELEASED, INTERRUPTED = 0, 1, 2, 3, 130

app = typer.Typer(
    help="The whole LLM training chain, from raw text to a deployed model and back.",
    epilog="Exit codes: 0 done; 1 failed; 2 bad use (recipe, argument, unknown name); 3 not released "
    "(run --require-release); 130 stopped by Ctrl-C. Example: noria run recipes/nano.toml",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(runs_app, name="runs")

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


@app.command(epilog="Example: noria run recipes/nano.toml --from pretraining --set pretraining.learning_rate=0.01")
def run(
    recipe: RecipeArgument,
    only: Annotated[str | None, typer.Option("--only", metavar="STAGE", help="Only this stage (or step).")] = None,
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="STAGE", help="From the first step of this stage (or from a step) on."),
    ] = None,
    set_: SetOption = None,
    turn: TurnOption = 1,
    traffic: TrafficOption = None,
    store: StoreOption = None,
    strict_code: Annotated[bool, typer.Option("--strict-code", help="Refuse to reuse what other code made.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Set damaged artifacts aside and make them anew.")] = False,
    require_release: Annotated[
        bool, typer.Option("--require-release", help="Exit with 3 unless the verdict is to release.")
    ] = False,
) -> int:
    """Make everything in RECIPE that is not made yet; what is there is reused, what is half-done goes on.

    STAGE is a number (4), a name (pretraining) or a step's name (cold_start). A verdict against a release is a result
    like any other and exits with 0, unless --require-release is given.
    """
    from noria.artifacts import Executor, Interrupted
    from noria.studio.live import LiveRun, duration, total_seconds
    from noria.studio.lookup import run_name, select

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill stops a run as Ctrl-C does
    opened = _open(store)
    if traffic:
        _import_traffic(traffic, turn, opened)
    loaded, steps = _steps(recipe, set_, turn, opened)
    steps = select(steps, only, from_)
    screen = console()
    live = LiveRun(steps, screen)
    executor = Executor(
        opened, run_name(loaded, turn), strict_code=strict_code, repair=repair, on_progress=live.observe
    )
    try:
        with live:
            made = executor.run(steps, loaded.model_dump(mode="json"), whole=only is None and from_ is None)
    except Interrupted:
        screen.print(live.table({}))
        raise
    changed = [progress for progress in live.progress.values() if progress.status == "made"]
    promoted = _promote(opened, made)
    if changed:
        screen.print(live.table(made))
        screen.print(f"\n{len(changed)} of {len(steps)} steps made in {duration(total_seconds(changed))}", style="bold")
    else:
        screen.print(f"nothing to do: all {len(steps)} steps of {run_name(loaded, turn)} are made")
    decision = made["verdict"].metrics.get("decision") if "verdict" in made else None
    if decision:
        screen.print(f"verdict: {decision}" + (f"; release/prod moved to {made['release'].key}" if promoted else ""))
    return NOT_RELEASED if require_release and decision != "release" else OK


@app.command(epilog="Example: noria plan recipes/nano.toml --set pretraining.learning_rate=0.01")
def plan(
    recipe: RecipeArgument,
    set_: SetOption = None,
    turn: TurnOption = 1,
    store: StoreOption = None,
    json_: JsonOption = False,
) -> int:
    """Show what `run` would do, and for each step which field changed since last time. Changes nothing."""
    from noria.artifacts import Executor
    from noria.studio import show
    from noria.studio.lookup import run_name

    opened = _open(store)
    loaded, steps = _steps(recipe, set_, turn, opened)
    planned = Executor(opened, run_name(loaded, turn)).plan(steps)
    if json_:
        return print_json({**show.plan_json(planned), "store_exists": opened.exists()})
    show.plan(console(), planned, run_name(loaded, turn))
    if not opened.exists():
        console().print(f"There is no store at {opened.root} yet; `noria run` makes it.", soft_wrap=True)
    return OK


@app.command(epilog="Example: noria why release/prod")
def why(
    reference: Annotated[str, typer.Argument(metavar="KEY", help="A key (or its start), an alias, or a step's name.")],
    store: StoreOption = None,
    json_: JsonOption = False,
) -> int:
    """Tell how and why an artifact was made: configuration, inputs, numbers, the runs that used it."""
    from noria.artifacts import why as explain
    from noria.studio import show

    opened = _open_there(store)
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
    opened = _open_there(store)
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
        opened = _open(store)
        user = forget_user(opened, name, reason, traffic or opened.root / "traffic.sqlite", delete_rows)
        if json_:
            return print_json(user)
        show.forgotten_user(console(), user)
        return OK
    if delete_rows or traffic:
        raise typer.BadParameter("--delete-rows and --traffic are for a user; a source has no rows in the traffic log")
    reached = graph.forget(_open_there(store), "source", name, reason)
    if json_:
        return print_json(reached)
    show.reached(console(), name, reached)
    show.marked(console())
    return OK


@app.command(name="eval", epilog="Example: noria eval release/prod my_tasks.jsonl")
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, a key, an alias or a step's name.")],
    tasks: Annotated[
        Path | None, typer.Argument(metavar="TASKS", help="Tasks in JSON Lines; the built-in families if left out.")
    ] = None,
    per_domain: Annotated[int, typer.Option(min=1, help="Without TASKS: held-out tasks a domain.")] = 100,
    max_tokens: Annotated[int, typer.Option(min=1, help="Sampled tokens a reply.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the tasks and of the sampling.")] = 2000,
    out: Annotated[Path | None, typer.Option(help="Write an item a line, with its answer and grade, here.")] = None,
    store: StoreOption = None,
    json_: JsonOption = False,
) -> int:
    """Let a model answer tasks and grade the answers; every number has n and a 95% interval."""
    import time

    from noria.studio import show
    from noria.studio.evaluate import Asked, evaluate_folder
    from noria.studio.lookup import model_folder

    folder = model_folder(model, _open(store))
    if out:
        _make_room(out)
    started = time.monotonic()
    summary = evaluate_folder(folder, Asked(tasks, per_domain, max_tokens, temperature, seed), out)
    if json_:
        return print_json(summary)
    show.evaluation(console(), summary, time.monotonic() - started)
    return OK


@app.command(epilog="Example: noria chat release/prod")
def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, a key or an alias.")] = "release/prod",
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling.")] = 0,
    store: StoreOption = None,
) -> int:
    """Talk to a model in the terminal. Nothing is logged."""
    from noria.studio.lookup import model_folder

    folder = model_folder(model, _open(store))
    from noria.deployment.gateway import chat_terminal

    chat_terminal(folder, seed)
    return OK


@app.command(epilog="Example: noria serve release/prod --port 8000")
def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, a key or an alias.")] = "release/prod",
    host: Annotated[str, typer.Option(help="Address to listen at; 127.0.0.1 is this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", help="A further name the server answers to; may be repeated.")
    ] = None,
    traffic: Annotated[Path | None, typer.Option(help="The traffic log; <store>/traffic.sqlite if not given.")] = None,
    store: StoreOption = None,
) -> int:
    """Serve a model with the OpenAI API and a chat page, and log what is consented to."""
    from noria.studio.lookup import model_folder

    opened = _open(store)
    folder = model_folder(model, opened)
    log = traffic or opened.root / "traffic.sqlite"
    log.parent.mkdir(parents=True, exist_ok=True)
    from noria import studio
    from noria.deployment.gateway import serve as start

    def ready(address: str) -> None:
        typer.echo(f"{model} at {address} (chat page) and {address}/v1 (OpenAI API); traffic in {log}; Ctrl-C stops")

    page = Path(studio.__file__).parent / "chat"
    start(folder, host, port, log, model, page, tuple(allow_host or ()), on_ready=ready)
    return OK


@app.command(epilog="Example: noria report --out report.html")
def report(
    name: Annotated[str | None, typer.Argument(metavar="RUN", help="A run's name; the latest if left out.")] = None,
    out: Annotated[Path, typer.Option("--out", help="The HTML file to write.")] = Path("report.html"),
    store: StoreOption = None,
    json_: JsonOption = False,
) -> int:
    """Write what every stage did as one HTML file that works offline."""
    from noria.studio import report as pages

    opened = _open_there(store)
    if json_:
        return print_json(pages.data(opened, name))
    _make_room(out)
    pages.write(opened, name, out)
    typer.echo(f"{out} written; open it in a browser")
    return OK


@app.command(epilog="Example: noria doctor --json")
def doctor(store: StoreOption = None, json_: JsonOption = False) -> int:
    """Say what this machine can and can't do. Exits with 1 where a run of all stages would fail."""
    from noria.studio import show
    from noria.studio.doctor import examine

    facts = examine(_open(store).root)
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

    opened = _open_there(store)
    found = collect(opened, apply=apply)
    kept = held(opened)
    if json_:
        return print_json({"garbage": found, "held": kept})
    show.garbage(console(), found, apply)
    show.held(console(), kept)
    return OK


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
    from noria.recipe_errors import RecipeError

    if isinstance(error, Interrupted):
        return INTERRUPTED
    return BAD_USE if isinstance(error, RecipeError | TaskFileError | Unknown) else FAILED


def _open(root: Path | None) -> Store:
    from noria.artifacts import Store

    store = Store(root)
    if store.root.exists() and not store.root.is_dir():
        raise typer.BadParameter(f"the store {store.root} is a file, not a folder; choose another with --store")
    return store


def _open_there(root: Path | None) -> Store:
    """For commands that look at what was made: a mistyped --store is no empty one."""
    from noria.artifacts import Unknown

    store = _open(root)
    if not store.exists():
        raise Unknown(f"no store at {store.root}: `noria run RECIPE` makes one, --store or NORIA_STORE names another")
    return store


def _make_room(out: Path) -> None:
    """Make the folder that a file is to be written in, before the work whose result it is."""
    if out.is_dir():
        raise typer.BadParameter(f"--out {out} is a folder; name a file in it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"--out {out}: {error.strerror}") from error
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise typer.BadParameter(f"--out {out}: no permission to write there")


def _steps(path: Path, overrides: list[str] | None, turn: int, store: Store) -> tuple[Recipe, list[Step]]:
    from noria.assembly import build
    from noria.recipe import load

    recipe = load(path, overrides or [])
    return recipe, build(recipe, turn, store)


def _import_traffic(log: Path, turn: int, store: Store) -> None:
    """The log becomes an artifact that `turn`, and every later run of it, learns from."""
    from noria.stages.s9_deployment import import_traffic

    if turn == 1:
        raise typer.BadParameter("--traffic needs --turn 2 or later: what users said teaches the turn after it")
    imported = import_traffic(store, log, turn - 1)
    typer.echo(f"{log} imported as {imported.key}", err=True)


def _promote(store: Store, made: dict[str, Artifact]) -> bool:
    """Carry out a verdict of this run, once; a rerun or a rollback is left alone."""
    if "verdict" not in made or "release" not in made:
        return False
    from noria.stages.s9_deployment import promote

    return promote(store, made["verdict"], made["release"])
