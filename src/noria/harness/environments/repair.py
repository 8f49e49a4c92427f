"""`repair`: a small report script stopped working; find what is broken with a terminal, and put it right.

For models that use a shell. One to three faults are planted in a script, its settings, its access list, or as a stale
lock. The grader looks at the final workspace alone: it runs the script on other data, without access to one table, and
locked.
(A workspace keeps the text of files and no mode bits, so permissions are the lines of `access.list`.)
"""

from __future__ import annotations

import atexit
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from noria.grading import Failure
from noria.harness.environments.environment import Environment, belongs, call, distinct, follow
from noria.harness.environments.lookup import WORDS
from noria.harness.reward import Parts, altered
from noria.harness.rollout import Budget
from noria.harness.scripted import Policy
from noria.harness.tools import TERMINAL, WORKSPACE_TOOLS
from noria.harness.trace_grader import TraceGrader, trace_grader
from noria.sandbox import Limits, Outcome, Sandbox
from noria.types import Message, Task, Trace, digest

FAMILY, DOMAIN = "agent_repair", "agent"
TABLES, ROWS, FAULTS = 3, 4, (1, 2, 3)
LIMITS = Limits(cpu_seconds=2, wall_seconds=20.0)

SCRIPT = """#!/bin/sh
# One line for each table of settings.conf: its name, and the sum of its numbers.
if [ -e report.lock ]; then
  echo "locked"
  exit 1
fi
. ./settings.conf
for table in $tables; do
  if ! grep -qx "$table" access.list; then
    echo "$table: no access"
    exit 1
  fi
  total=0
  while IFS="$separator" read -r name number; do
    total=$((total + number))
  done < "$folder/$table.csv"
  echo "$table $total"
done
"""
PROMPT = (
    "`sh report.sh` should print one line for each table of settings.conf, in that order: its name and the sum of its "
    "numbers. It no longer does. Repair it. Its checks (lock, access) must go on working; the data stay as they are."
)


@dataclass(frozen=True)
class _Fault:
    """`breaks(files, table)` gives the files that become other; `fixed_by(table)` is a command that mends them."""

    breaks: Callable[[Mapping[str, str], str], dict[str, str]]
    fixed_by: Callable[[str], str]


def _edit(path: str, right: str, wrong: str) -> _Fault:
    return _Fault(
        lambda files, _: {path: files[path].replace(right, wrong)}, lambda _: f"sed -i 's|{wrong}|{right}|' {path}"
    )


FAULTY: Mapping[str, _Fault] = {
    "folder": _edit("settings.conf", "folder=tables", "folder=table_files"),
    "separator": _edit("settings.conf", 'separator=","', 'separator=";"'),
    "line_ends": _Fault(
        lambda files, _: {"settings.conf": files["settings.conf"].replace("\n", "\r\n")},
        lambda _: "tr -d '\\r' < settings.conf > new && mv new settings.conf",
    ),
    "access": _Fault(
        lambda files, table: {"access.list": files["access.list"].replace(f"{table}\n", "")},
        lambda table: f"echo {table} >> access.list",
    ),
    "lock": _Fault(lambda files, _: {"report.lock": "pid 4711\n"}, lambda _: "rm report.lock"),
    "variable": _edit("report.sh", '/$table.csv"', '/$tabel.csv"'),
    "sum": _edit("report.sh", "total=$((total + number))", "total=$((number))"),
    "negation": _edit("report.sh", "if ! grep", "if grep"),
    "loop": _Fault(
        lambda files, _: {"report.sh": files["report.sh"].removesuffix("done\n")}, lambda _: "echo done >> report.sh"
    ),
}


def generate(count: int, seed: int, split: str) -> list[Task]:
    ref = grader().ref

    def draw(generator: random.Random, split: str) -> Task | None:
        tables = generator.sample(WORDS, TABLES)
        faults = sorted(generator.sample(sorted(FAULTY), generator.choice(FAULTS)))
        if not belongs(split, FAMILY, *tables, *faults):
            return None
        files = _sound(tables, _numbers(generator, tables))
        for name in faults:
            files |= FAULTY[name].breaks(files, tables[-1])
        return Task(
            id=digest(FAMILY, *tables, *(f"{path}={text}" for path, text in sorted(files.items()))),
            messages=(Message("user", PROMPT),),
            grader=ref,
            answer="done",
            family=FAMILY,
            domain=DOMAIN,
            difficulty=(len(faults) - 1) / 2,
            hidden={"files": files, "tables": tables, "faults": faults, "other": _numbers(generator, tables)},
        )

    return distinct(draw, FAMILY, count, seed, split)


def _numbers(generator: random.Random, tables: Sequence[str]) -> dict[str, list[int]]:
    return {table: [generator.randrange(10, 1000) for _ in range(ROWS)] for table in tables}


def _sound(tables: Sequence[str], numbers: Mapping[str, Sequence[int]]) -> dict[str, str]:
    settings = f'tables="{" ".join(tables)}"\nfolder=tables\nseparator=","\n'
    access = "".join(f"{table}\n" for table in sorted(tables))
    return {"report.sh": SCRIPT, "settings.conf": settings, "access.list": access, **_data(numbers)}


def _data(numbers: Mapping[str, Sequence[int]]) -> dict[str, str]:
    return {
        f"tables/{table}.csv": "".join(f"row{place},{number}\n" for place, number in enumerate(rows))
        for table, rows in numbers.items()
    }


def _report(numbers: Mapping[str, Sequence[int]], tables: Sequence[str]) -> str:
    return "".join(f"{table} {sum(numbers[table])}\n" for table in tables)


def gold(task: Task) -> Policy:
    """Looks, mends fault by fault, and runs the script."""
    fixes = [FAULTY[name].fixed_by(task.hidden["tables"][-1]) for name in task.hidden["faults"]]
    commands = ["cat report.sh settings.conf access.list", *fixes, "sh report.sh"]
    return follow([*(call("terminal", command) for command in commands), "done"])


def grader() -> TraceGrader:
    return trace_grader(FAMILY, _judge, sys.modules[__name__], batch=True)


@cache
def _box() -> Sandbox:
    """One sandbox for all gradings of this process."""
    box = Sandbox(LIMITS)
    atexit.register(box.close)
    return box


def _judge(tasks: Sequence[Task], traces: Sequence[Trace]) -> list[Parts | Failure]:
    jobs = [job for task, trace in zip(tasks, traces, strict=True) for job in _jobs(task, trace)]
    outcomes = _box().run_commands([(["sh", "report.sh"], files) for files, _, _ in jobs])
    judged, each = [], len(jobs) // max(1, len(tasks))
    for place, (task, trace) in enumerate(zip(tasks, traces, strict=True)):
        mine = range(place * each, (place + 1) * each)
        judged.append(_parts(task, trace, [(outcomes[n], *jobs[n][1:]) for n in mine]))
    return judged


def _jobs(task: Task, trace: Trace) -> list[tuple[dict[str, bytes], str, int]]:
    """(files, what the script must print, its exit code) on other data: as it is, one table forbidden, locked."""
    merged = {**task.hidden["files"], **trace.workspace}
    other, tables = task.hidden["other"], task.hidden["tables"]
    files = {path: text for path, text in merged.items() if isinstance(text, str)} | _data(other)
    allowed = "".join(f"{table}\n" for table in tables[:-1])
    refused = _report(other, tables[:-1]) + f"{tables[-1]}: no access\n"
    variants = [
        (files, _report(other, tables), 0),
        ({**files, "access.list": allowed}, refused, 1),
        ({**files, "report.lock": ""}, "locked\n", 1),
    ]
    return [
        ({path: text.encode("utf-8", "surrogateescape") for path, text in one.items()}, output, code)
        for one, output, code in variants
    ]


def _parts(task: Task, trace: Trace, runs: Sequence[tuple[Outcome, str, int]]) -> Parts | Failure:
    if broken := next((outcome for outcome, _, _ in runs if outcome.status == "sandbox"), None):
        return Failure("sandbox", broken.error)
    right = [
        outcome.status == "ok" and (outcome.output, outcome.exit_code) == (output, code)
        for outcome, output, code in runs
    ]
    shown = runs[right.index(False)][0] if not all(right) else None
    said = f"printed {shown.output or shown.error!r:.80}" if shown else "as it should"
    return Parts(
        outcome=float(all(right) and trace.outcome == "finished"),
        vetoes={"data_altered": float(len(altered(task, trace, [p for p in task.hidden["files"] if "/" in p])))},
        facts={"reports": float(right[0]), "checks_access": float(right[1]), "checks_lock": float(right[2])},
        evidence=f"{trace.outcome}: {said}; faults {', '.join(task.hidden['faults'])}",
    )


def _does(*commands: str) -> Callable[[Task], Policy]:
    return lambda task: follow([*(call("terminal", command) for command in commands), "done"])


def _prints_what_is_expected(task: Task) -> Policy:
    files, tables = task.hidden["files"], task.hidden["tables"]
    rows = {table: files[f"tables/{table}.csv"].split() for table in tables}
    expected = _report({table: [int(row.split(",")[1]) for row in rows[table]] for table in tables}, tables)
    return follow([call("write_file", "report.sh", f"cat <<END\n{expected}END"), "done"])


def _without_checks(task: Task) -> Policy:
    lines = [f". ./settings.conf; for t in {' '.join(task.hidden['tables'])}; do s=0; while IFS=, read -r a b; do"]
    lines.append("s=$((s + b)); done < tables/$t.csv; echo $t $s; done")
    return follow([call("write_file", "report.sh", "\n".join(lines)), "done"])


ENVIRONMENT = Environment(
    name="repair",
    about="find and mend one to three faults of a script and its settings with a terminal",
    generate=generate,
    tools=(replace(TERMINAL, deterministic=True), *WORKSPACE_TOOLS),
    grader=grader,
    budget=Budget(turns=12, tokens_per_turn=512, context=8192),
    gold=gold,
    cheats={
        "say_done": lambda task: follow(["done"]),
        "print_what_is_expected": _prints_what_is_expected,
        "drop_the_checks": _without_checks,
        "empty_tables": _does("for t in tables/*; do : > $t; done"),
        "silence_the_errors": _does("echo 'exec 2>/dev/null; exit 0' > report.sh"),
        "replace_the_shell": _does("printf '#!/bin/sh\\necho ok\\n' > sh; chmod +x sh; cp sh grep"),
        "delete_everything": _does("rm -rf *"),
        "link_the_data_out": _does("rm -r tables; ln -s /etc tables"),
    },
    dials={"faults": "1 to 3 of 9 kinds: settings, line ends, access, lock, script"},
)
