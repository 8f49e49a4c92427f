"""Plans, provenance and garbage as tables for people; each has a twin that is plain JSON for scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from noria.artifacts.lineage import QUOTED_CHARACTERS
from noria.studio.live import duration, number, stage_title
from noria.studio.tables import Items, is_wide, table

if TYPE_CHECKING:
    from noria.artifacts import Manifest, Plan
    from noria.artifacts.gc import Garbage, Held
    from noria.artifacts.lineage import Ancestor, OriginRow, RawRecords, Reached
    from noria.artifacts.plan import PlannedStep, Why
    from noria.studio.doctor import Fact
    from noria.studio.lookup import ForgottenUser

ACTION_STYLES = {"run": "bold yellow", "resume": "bold cyan", "reuse": "dim"}
KEY_DIGITS = 12  # of a key that is shown to be typed again; JSON has all 32
FACT_STYLES = {"ok": "green", "missing": "yellow", "bad": "bold red"}


def plan(console: Console, planned: Plan, run_name: str, memory: Mapping[str, int] | None = None) -> None:
    """`memory`: bytes that a step's training is predicted to hold."""
    wide = is_wide(console)
    timed = any(step.last_seconds is not None for step in planned.steps)
    columns = ("stage", "step", "would", "last time", "why", "key") if wide else ("step", "would", "last time", "why")
    rows = table(*(name for name in columns if timed or name != "last time"), whole=("stage", "step", "would", "key"))
    for step in planned.steps:
        why = Items([*step.reason.split("; "), *(f"to forget: {mark.what} {mark.name}" for mark in step.marks)], "; ")
        action = Text(step.action, ACTION_STYLES[step.action])
        last = (_last_time(step, run_name),) if timed else ()
        if wide:
            rows.add_row(stage_title(step.stage), step.name, action, *last, why, step.key[:8])
        else:
            rows.add_row(step.name, action, *last, why)
    console.print(rows)
    for problem in planned.problems:
        console.print(Text(str(problem), "red"))
    total, left = len(planned.steps), len(planned.to_run)
    console.print(
        f"\n{run_name}: " + (f"{left} of {total} steps would run" if left else f"nothing to do, {total} steps")
    )
    known = [step.last_seconds for step in planned.to_run if step.last_seconds is not None]
    if known:
        which = "they" if len(known) == left else f"{len(known)} of them"
        console.print(f"{which} took {duration(sum(known))} when last made")
    for name, size in (memory or {}).items():
        console.print(f"{name} is predicted to hold {number(size)}B while it trains, beside the libraries")


def _last_time(step: PlannedStep, run_name: str) -> str:
    if step.last_seconds is None:
        return ""
    return duration(step.last_seconds) + (f" ({step.last_run})" if step.last_run != run_name else "")


def plan_json(planned: Plan, memory: Mapping[str, int] | None = None) -> dict[str, Any]:
    steps = [
        {
            **{name: getattr(step, name) for name in ("name", "stage", "key", "action", "reason", "code_changed")},
            "changes": [
                {"field": change.path, "old": _plain(change.old), "new": _plain(change.new)} for change in step.changes
            ],
            "marks": [asdict(mark) for mark in step.marks],
            "last_seconds": step.last_seconds,
            "last_run": step.last_run,
            "memory_bytes": (memory or {}).get(step.name),
        }
        for step in planned.steps
    ]
    return {"steps": steps, "problems": [str(problem) for problem in planned.problems]}


def why(console: Console, found: Why) -> None:
    manifest = found.manifest
    console.print(Text.assemble((manifest.step, "bold"), f"  {manifest.kind}  {manifest.key}"))
    rows = table("", "")
    rows.show_header = False
    rows.add_row("made", f"{manifest.created} by {stage_title(manifest.stage) or 'an import from outside'}")
    rows.add_row("code", manifest.code or "none: it came from outside")
    rows.add_row("environment", ", ".join(f"{name} {value}" for name, value in manifest.environment.items()))
    rows.add_row("content", f"{len(manifest.files)} files, {number(manifest.size)}B")
    for name, value in sorted(_flat(manifest.config)):
        rows.add_row(f"config.{name}", str(value))
    for name, value in (manifest.numerics or {}).items():
        rows.add_row(f"numerics.{name}", str(value))
    for role, key, step in found.inputs:
        rows.add_row(f"input {role}", f"{step}  {key}")
    for name, value in sorted(_flat(manifest.metrics)):
        rows.add_row(f"metric {name}", str(value))
    for row in found.history:
        rows.add_row(f"run {row['run']}", f"{row['run_name']}: {row['status']} ({_reason(row)})")
    for move in found.aliases:
        rows.add_row("alias", f"{move.name} since {move.time}: {move.reason}")
    for mark in found.marks:
        rows.add_row("to forget", f"{mark.what} {mark.name}, asked {mark.time}: {mark.reason}")
    console.print(rows)


def _reason(row: Mapping[str, Any]) -> str:
    """As a plan it says what was so before the run; told afterwards, "made (never made)" would contradict itself."""
    return "first time" if row["reason"] == "never made" else row["reason"]


def why_json(found: Why) -> dict[str, Any]:
    return {
        "manifest": asdict(found.manifest),
        "inputs": [dict(zip(("role", "key", "step"), row, strict=True)) for row in found.inputs],
        "history": list(found.history),
        "aliases": [asdict(move) for move in found.aliases],
        "marks": [asdict(mark) for mark in found.marks],
    }


def upstream(
    console: Console, ancestors: Sequence[Ancestor], records: Sequence[RawRecords], origins: Sequence[OriginRow]
) -> None:
    for node in as_tree(ancestors):
        manifest = node.manifest
        role = f"{node.role}: " if node.role else ""
        outside = "  (from outside)" if manifest.outside else ""
        head = Text.assemble("  " * node.depth, (role, "dim"), (manifest.step, "bold"), f"  {manifest.kind}  ")
        console.print(head.append(f"{manifest.key[:KEY_DIGITS]}{outside}", "dim"), soft_wrap=True)
    wide = is_wide(console)
    if records:
        console.print("\n[bold]raw files[/bold] that its documents come from")
        columns: tuple[str, ...] = ("raw data", "source", "file", "documents", "offsets")
        rows = table(*_without("source", columns, wide), whole=("raw data", "source", "documents", "offsets"))
        for row in records:
            offsets = f"{row.first_offset} to {row.last_offset}"
            source = (row.source,) if wide else ()
            rows.add_row(row.raw[:KEY_DIGITS], *source, Items([row.file]), str(row.documents), offsets)
        console.print(rows)
    if origins:
        console.print("\n[bold]records[/bold], e.g. (--document quotes one)")
        columns = ("document", "source", "licence", "file", "offset", "bytes")
        rows = table(*_without("source", columns, wide), whole=("document", "source", "licence", "offset", "bytes"))
        for origin in origins:
            source = (origin.source,) if wide else ()
            place = (Items([origin.file]), str(origin.offset), str(origin.length))
            rows.add_row(origin.document[:KEY_DIGITS], *source, origin.licence, *place)
        console.print(rows)


def as_tree(ancestors: Sequence[Ancestor]) -> list[Ancestor]:
    """The same, each right below the one it is listed for."""
    below: dict[str, list[Ancestor]] = {}
    for node in ancestors:
        below.setdefault(node.parent, []).append(node)
    ordered, waiting = [], below.pop("", [])
    while waiting:
        node = waiting.pop()
        ordered.append(node)
        waiting += reversed(below.get(node.manifest.key, []))
    return ordered


def record(console: Console, origin: OriginRow) -> None:
    """One document: where it lies and how it begins."""
    head = Text.assemble((origin.document, "bold"), f"  {origin.source}, licence {origin.licence}")
    console.print(head, soft_wrap=True)
    place = f"{origin.file}, offset {origin.offset}, {origin.length} bytes"
    console.print(Text(f"{place}, in raw data {origin.raw or '(no longer in the store)'}\n"), soft_wrap=True)
    # A document may hold control sequences, which a terminal would obey.
    shown = "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in origin.text)
    console.print(Text(shown + ("..." if len(origin.text) == QUOTED_CHARACTERS else "")), soft_wrap=True)


def _without(name: str, columns: Sequence[str], wide: bool) -> list[str]:
    return [column for column in columns if wide or column != name]


def reached(console: Console, name: str, found: Reached | ForgottenUser) -> None:
    console.print(f"{name} reached {len(found.artifacts)} artifacts, nearest first:")
    manifests(console, found.artifacts)
    if not found.releases:
        console.print("No release saw it.")
    for move in found.releases:
        console.print(
            Text.assemble((move.name, "bold"), f"  {move.key}  since {move.time}: {move.reason}"), soft_wrap=True
        )


def marked(console: Console) -> None:
    console.print("All of them are marked. Take it out of the recipe, run it again, then `noria gc` frees the rest.")


def forgotten_user(console: Console, found: ForgottenUser) -> None:
    if found.artifacts:
        reached(console, found.name, found)
        console.print("All of them are marked: `noria gc` frees what no run or alias needs, and says what does.")
    else:
        console.print(f"{found.name} reached no artifact.")
    if found.deleted:
        console.print(f"{found.requests} requests of {found.name} deleted from {found.log}.", soft_wrap=True)
    elif found.requests:
        said = f"{found.log} holds {found.requests} requests of {found.name}; --delete-rows deletes them."
        console.print(said, soft_wrap=True)
    else:
        console.print(f"No request of {found.name} is in a traffic log {found.log}.", soft_wrap=True)


def manifests(console: Console, found: Sequence[Manifest]) -> None:
    rows = table("step", "kind", "key", "made", whole=("step", "key", "made"))
    for manifest in found:
        rows.add_row(manifest.step, manifest.kind, manifest.key[:KEY_DIGITS], manifest.created[:19])
    console.print(rows)


def garbage(console: Console, found: Sequence[Garbage], freed: bool) -> None:
    rows = table("what", "name", "", "bytes", whole=("what", "name", "bytes"))
    for item in found:
        rows.add_row(item.what, item.name[:KEY_DIGITS], item.label, number(item.bytes))
    if found:
        console.print(rows)
    total = number(sum(item.bytes for item in found))
    if not found:
        console.print(
            "Nothing can go: everything is needed by an alias or by the next run of a recipe, or came from outside."
        )
    elif freed:
        console.print(f"Freed {total}B.")
    else:
        console.print(f"{total}B can go; nothing was deleted. `noria gc --apply` deletes it.")


def held(console: Console, found: Sequence[Held]) -> None:
    if not found:
        return
    console.print("\nMarked to be forgotten, but still needed:")
    alike: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for item in found:
        alike.setdefault((item.marks, item.by), []).append(f"{item.step} {item.key[:8]}")
    rows = table("to forget", "needed by", "artifacts")
    for (asked, holders), artifacts in alike.items():
        rows.add_row(Items(asked), Items(holders), Items(artifacts))
    console.print(rows)
    console.print(
        "Make those runs again without it (`noria run --traffic` moves an alias traffic/..., a verdict release/prod); "
        "what they made before can then go."
    )


def facts(console: Console, found: Sequence[Fact]) -> None:
    rows = table("", "", "")
    rows.show_header = False
    for fact in found:
        value = Text(fact.value)
        if fact.advice:
            value.append(f"\n{fact.advice}", "yellow")
        rows.add_row(Text(fact.status, FACT_STYLES[fact.status]), fact.name, value)
    console.print(rows)


def evaluation(console: Console, summary: Mapping[str, Any], seconds: float) -> None:
    for title in ("domains", "families"):
        rows = table(title[:-1].replace("ie", "y"), "right", "95% interval", "n", "not graded", "tokens a reply")
        for name, row in summary[title].items():
            if not row["n"]:
                rows.add_row(name, "", "", "0", str(row["failed"]), "")
                continue
            interval = f"{row['low']:.1%} to {row['high']:.1%}"
            rows.add_row(
                name, f"{row['accuracy']:.1%}", interval, str(row["n"]), str(row["failed"]), f"{row['tokens']:.1f}"
            )
        console.print(rows)
        console.print()
    console.print(f"took {duration(seconds)}", style="dim")


def _flat(value: Any, name: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        return [pair for key, item in value.items() for pair in _flat(item, f"{name}.{key}" if name else str(key))]
    return [(name, value)] if name else []


def _plain(value: Any) -> Any:
    """None for a field that is absent on one side."""
    return value if isinstance(value, str | int | float | bool | list | dict | None) else None
