"""Environments for agents: noria env list | show | check."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noria.cli.app import FAILED, OK, JsonOption, app
from noria.studio.output import console, print_json, progress

if TYPE_CHECKING:
    from noria.harness.environments.environment import Environment
    from noria.harness.examine import Examination

environments = typer.Typer(help="Environments for agents: list, look at, check one.", no_args_is_help=True)
app.add_typer(environments, name="env")

SeedOption = Annotated[int, typer.Option(min=0, help="Which tasks are drawn.")]
COLUMNS = ("splits", "gold", "null", "random", "cheats", "re-run", "difficulty", "fuzz", "tools")


@environments.command("list", epilog="Example: noria env list")
def list_(json_: JsonOption = False) -> int:
    """The environments that come with noria."""
    from rich.table import Table

    from noria.harness.environment_file import environment_names, load_environment

    loaded = [load_environment(name) for name in environment_names()]
    if json_:
        return print_json([_described(environment) for environment in loaded])
    table = Table("environment", "what it is", "dials", "tools", box=None, padding=(0, 2, 0, 0))
    for environment in loaded:
        tools = ", ".join(tool.name for tool in environment.tools)
        table.add_row(environment.name, environment.about, ", ".join(environment.dials), tools)
    console().print(table)
    return OK


@environments.command(
    epilog="Example: noria env check --all. Exit codes: 0 every gate passed; 1 a gate failed; 2 no such environment."
)
def check(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME|FILE...", help="Names of environments, or .py files.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every environment that comes with noria.")] = False,
    tasks: Annotated[
        int | None,
        typer.Option(min=5, help="Held-out tasks; if not given, as many as the environment says (mostly 40)."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=2, help="Runs a task of the policy that slips.")] = 8,
    seed: SeedOption = 0,
    json_: JsonOption = False,
) -> int:
    """Run environments through their quality gates. Equal arguments give equal findings.

    Gold scores 1; doing nothing, acting at random and cheating score about 0; running again gives the same; enough
    tasks lie between always and never; hostile traces don't fool the grader; tools are steady; splits share nothing.
    """
    from noria.harness.environment_file import environment_names, load_environment
    from noria.harness.examine import examine, traces_of

    wanted = [*(names or []), *(environment_names() if all_ else [])]
    if not wanted:
        raise typer.BadParameter("name an environment or a .py file, or say --all")
    loaded = [load_environment(name) for name in dict.fromkeys(wanted)]
    counts = [tasks or environment.tasks_to_check for environment in loaded]
    sizes = [traces_of(environment, count, repeats) for environment, count in zip(loaded, counts, strict=True)]
    found: list[Examination] = []
    with progress("traces", sum(sizes)) as report:
        for place, (environment, count) in enumerate(zip(loaded, counts, strict=True)):
            tell = partial(_report_from, report, sum(sizes[:place]), sum(sizes))
            found.append(examine(environment, count, repeats, seed, tell))
    if json_:
        print_json([{**vars(one), "passed": one.passed} for one in found])
    else:
        _show_table(found, seed)
    return OK if all(one.passed for one in found) else FAILED


@environments.command(
    epilog="Example: noria env show lookup --split heldout_hops. Exit codes: 0 all runs are graded; 1 a grading "
    "failed; 2 no such environment."
)
def show(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="An environment's name, or a .py file.")],
    split: Annotated[str, typer.Option(help="Which split the tasks are of.")] = "train",
    tasks: Annotated[int, typer.Option(min=1, help="How many tasks.")] = 2,
    seed: SeedOption = 0,
    json_: JsonOption = False,
) -> int:
    """A few tasks of an environment, with a gold run of each as the model would live it.

    A result that the harness program shows the model in another form stands there twice: as the tool gave it, and
    "(as shown)".
    """
    from noria.harness.author_errors import drawn
    from noria.harness.environment_file import load_environment
    from noria.harness.examine import TOOL_LIMITS, play
    from noria.harness.tools import Toolbox
    from noria.harness.traces.story import is_retold
    from noria.sandbox import Sandbox

    environment = load_environment(name)
    if split not in environment.splits:
        raise typer.BadParameter(f"{environment.name} has no split {split!r}, but {', '.join(environment.splits)}")
    with Sandbox(TOOL_LIMITS) as box, progress("traces", tasks) as report:
        made = drawn(environment, tasks, seed, split)
        gold = play(environment, Toolbox(box, environment.tools), made, seed, environment.gold, report)
    status = OK if all(score.status == "graded" for score in gold.scores) else FAILED
    if json_:
        runs = zip(gold.tasks, gold.traces, gold.scores, strict=True)
        told = [{"task": task, "trace": trace, "score": score} for task, trace, score in runs]
        print_json({**_described(environment), "gold": told})
        return status
    out = console()
    out.print(f"{environment.name}: {environment.about}", markup=False)
    for dial, meaning in environment.dials.items():
        out.print(f"  {dial}: {meaning}", markup=False)
    for task, trace, score in zip(gold.tasks, gold.traces, gold.scores, strict=True):
        out.print(f"\ntask {task.id[:12]}, difficulty {task.difficulty:g}", style="bold", markup=False)
        for place, node in enumerate(trace.nodes):
            who = f"{node.agent or node.message.role:>9}  {'(as shown) ' if is_retold(trace, place) else ''}"
            text = node.message.content.replace("\n", "\n" + " " * 11)
            out.print(f"{who}{text}", markup=False, style="cyan" if node.call else None)
        if score.status == "failed":
            out.print(f"    grading failed, {score.reason}: {score.evidence}", markup=False, style="red")
            continue
        columns = ", ".join(f"{column} {value:g}" for column, value in score.components.items())
        out.print(f"    score  {score.value} ({columns})", markup=False)
    return status


def _report_from(report: Callable[[int, int], None], before: int, total: int, done: int, of: int) -> None:
    report(before + done, total)


def _described(environment: Environment) -> dict[str, Any]:
    return {
        "name": environment.name,
        "about": environment.about,
        "version": environment.version,
        "dials": dict(environment.dials),
        "splits": environment.splits,
        "tools": [{"name": tool.name, "description": tool.description} for tool in environment.tools],
        "cheats": list(environment.cheats),
        "budget": vars(environment.budget),
    }


def _show_table(found: list[Examination], seed: int) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("environment", "tasks", *COLUMNS, "passes", box=None, padding=(0, 2, 0, 0))
    for one in found:
        gates = {gate.name: gate for gate in one.gates}
        cells = [Text(gates[name].figure, "" if gates[name].passed else "bold red") for name in COLUMNS]
        table.add_row(
            one.environment, str(one.tasks), *cells, Text("yes", "green") if one.passed else Text("NO", "bold red")
        )
    out = console()
    out.print(table)
    out.print(
        f"\ntasks: held-out, seed {seed}; gold, null, random, cheats: mean reward (of the worst cheat; rewards "
        "below 0 count as 0 in the last three), on more tasks where these can't tell whether it is below 0.1; "
        "difficulty: share of tasks solved sometimes by a policy that slips; fuzz: hostile traces that broke or fooled "
        "the grader."
    )
    for one in found:
        for gate in one.gates:
            if not gate.passed:
                out.print(f"{one.environment}: gate {gate.name} failed: {gate.evidence}", markup=False, style="red")
            elif gate.note:
                out.print(f"{one.environment}: gate {gate.name} passed: {gate.evidence}", markup=False)
