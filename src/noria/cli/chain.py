"""Turning the wheel: noria run, noria plan."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noria.cli.app import (
    NOT_RELEASED,
    OK,
    JsonOption,
    RecipeArgument,
    SetOption,
    StoreOption,
    TrafficOption,
    TurnOption,
    app,
    load_steps,
    open_store,
)
from noria.studio.output import console, print_json

if TYPE_CHECKING:
    from noria.artifacts import Artifact, Plan, Step, Store


@app.command(epilog="Example: noria run recipes/nano.toml --from pretraining --set pretraining.learning_rate=0.01")
def run(
    recipe: RecipeArgument,
    only: Annotated[str | None, typer.Option("--only", metavar="STAGE", help="Only this stage (or step).")] = None,
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="STAGE", help="From the first step of this stage (or from a step) on."),
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="STAGE", help="To the last step of this stage (or to a step).")
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
    from noria.studio.training_view import training_view

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill stops a run as Ctrl-C does
    opened = open_store(store)
    if traffic:
        _import_traffic(traffic, turn, opened)
    loaded, steps = load_steps(recipe, set_, turn, opened)
    steps = select(steps, only, from_, to)
    screen = console()
    trained = next((step.key for step in steps if step.name == "grpo"), "")
    live = LiveRun(steps, screen, lambda: training_view(opened, trained))
    executor = Executor(
        opened, run_name(loaded, turn), strict_code=strict_code, repair=repair, on_progress=live.observe
    )
    try:
        with live:
            made = executor.run(
                steps, loaded.model_dump(mode="json"), whole=only is None and from_ is None and to is None
            )
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
    """Show what `run` would do, and for each step which field changed since last time. Changes nothing.

    "last time" is how long a step of this name took when it was last made, whatever its settings were then.
    """
    from noria.artifacts import Executor
    from noria.studio import show
    from noria.studio.lookup import run_name

    opened = open_store(store)
    loaded, steps = load_steps(recipe, set_, turn, opened)
    planned = Executor(opened, run_name(loaded, turn)).plan(steps)
    memory = _training_memory(steps, planned, opened)
    if json_:
        return print_json({**show.plan_json(planned, memory), "store_exists": opened.exists()})
    show.plan(console(), planned, run_name(loaded, turn), memory)
    if not opened.exists():
        console().print(f"There is no store at {opened.root} yet; `noria run` makes it.", soft_wrap=True)
    return OK


def _training_memory(steps: Sequence[Step], planned: Plan, store: Store) -> dict[str, int]:
    """Bytes that the training of a base model will hold, by step, where the planner has already decided on it."""
    from noria.stages import s4_pretraining as s4

    made = {step.key for step in planned.steps if step.action == "reuse"}
    found = {}
    for step in steps:
        decided = step.inputs.get("plan")
        if step.stage != s4.STAGE or step.key in made or not decided or decided.key not in made:
            continue
        artifact = store.get(decided.key)
        if artifact and (memory := s4.predicted_memory(step, artifact)):
            found[step.name] = memory.total
    return found


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
