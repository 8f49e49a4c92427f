"""The environment bootstrap: a snapshot of the workspace in the first prompt, so that no turns go into looking around.

It was the finding of the harness search in Meta-Harness (arXiv 2603.28052). `bootstrapped(program)` turns it on for any
program; the snapshot is a function of the task's files alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from noria.harness.program import Program, program_from_source
from noria.types import Message, digest

MARK = "+bootstrap"  # at the end of the program's name
SNAPSHOT_BYTES = 2048  # of all that is shown
FILE_BYTES = 512  # files up to this size are shown whole while there is room


def bootstrapped(program: Program) -> Program:
    """`program`, its first prompt opened by a snapshot of the workspace; another program with another version."""
    own = Path(__file__).read_text(encoding="utf-8")
    return replace(program, name=f"{program.name}{MARK}", version=digest(program.version, own), bootstrap=True)


def program_named(name: str, source: str, filename: str = "") -> Program:
    """The program that traces of `name` were made with: that of `source`, with the bootstrap where the name says so."""
    own = name.removesuffix(MARK)
    program = program_from_source(source, own, filename or own)
    return program if own == name else bootstrapped(program)


def opening(messages: Sequence[Message], files: Mapping[str, str]) -> tuple[Message, ...]:
    """The task's messages with the snapshot in the system message, which comes first."""
    told = snapshot(files)
    if messages and messages[0].role == "system":
        return (Message("system", f"{messages[0].content}\n\n{told}"), *messages[1:])
    return (Message("system", told), *messages)


def snapshot(files: Mapping[str, str]) -> str:
    """Names and sizes in order, then small text files whole, as far as they fit."""
    lines = [f"{len(files)} files in the workspace:" if files else "The workspace is empty."]
    room = SNAPSHOT_BYTES
    for number, name in enumerate(sorted(files)):
        line = f"{name} ({len(files[name].encode('utf-8', 'surrogateescape'))} bytes)"
        room -= len(line.encode()) + 1
        if room < 0:
            lines.append(f"and {len(files) - number} more")
            break
        lines.append(line)
    for name in sorted(files):
        text = files[name]
        shown = f"--- {name}\n{text.rstrip()}"
        size = len(shown.encode("utf-8", "replace"))
        if size > min(room, FILE_BYTES) or _is_binary(text):
            continue
        room -= size + 1
        lines.append(shown)
    return "\n".join(lines)


def _is_binary(text: str) -> bool:
    return any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in text)
