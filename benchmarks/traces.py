"""Traces kept as blocks with an index, against the same traces as JSON Lines.

Real rollouts of the lookup environment (short, groups of eight, as RL makes them), and made-up ones of twenty long
turns, each repeated under other ids with other log-probabilities up to the wanted count. Size, writing, reading all,
and a page of a filtered list: ours from an open index, theirs by reading every line.

With --large, 100,000 traces: a page of each filter and one trace against bounds, in a process of their own.

    python -m benchmarks.traces [--traces 10000 | --large] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.report import Row, paired_row, show
from noria.data.tokenizer import train_tokenizer
from noria.harness import FILE_TOOLS, Arena, ScriptedSampler, load_program
from noria.harness.environments import lookup
from noria.harness.traces import Entry, Library, Query, Recorded, TraceWriter, load, save
from noria.types import GraderRef, Message, ModelCall, Node, Score, Task, ToolUse, Trace, digest

PEER = "JSON Lines (json of Python)"
GROUP, STEP = 8, 128
LARGE = 100_000
PAGE_BOUND, OPEN_BOUND, MEMORY_BOUND = 0.1, 1.0, 50.0  # seconds, seconds, MB beyond what the imports take
QUERIES = {
    "first page": Query(),
    "last page": Query(descending=True),
    "failed ones by tokens": Query(score_max=0.0, order="tokens", descending=True),
    "text": Query(text="error no such"),
    "a word of every trace": Query(text="find"),
    "one tool, one step": Query(tool="read", step_min=5, step_max=5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, default=10_000, help="short traces; a hundredth as many long ones")
    parser.add_argument("--quick", action="store_true", help="1,000 traces and one repetition")
    parser.add_argument("--large", action="store_true", help="100,000 traces against bounds, ours alone")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.large:
        show("traces", _large(1000 if options.quick else LARGE), as_json=options.json, quick=options.quick)
        return
    count = 1000 if options.quick else options.traces
    repetitions = 1 if options.quick else 5
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, templates, number in (("short", _short(), count), ("20 turns", _long(), max(8, count // 100))):
            rows += _storage(name, list(_many(templates, number)), Path(folder) / name, repetitions)
        rows += _lists(_short(), count, Path(folder) / "list", repetitions)
    show("traces", rows, as_json=options.json, quick=options.quick)


def _storage(name: str, entries: list[Entry], folder: Path, repetitions: int) -> list[Row]:
    recorded = Recorded(
        tuple(entry.task for entry in entries if entry.task),
        tuple(entry.trace for entry in entries),
        tuple(entry.score for entry in entries if entry.score),
    )
    ours: dict[str, list[float]] = {"write": [], "read": []}
    theirs: dict[str, list[float]] = {"write": [], "read": []}
    for repetition in range(repetitions):
        blocks, lines = folder / f"blocks{repetition}", folder / f"lines{repetition}"
        ours["write"].append(_seconds(lambda blocks=blocks: _append(blocks, entries)))
        theirs["write"].append(_seconds(lambda lines=lines: save(lines, recorded)))
        ours["read"].append(_seconds(lambda blocks=blocks: load(blocks)))
        theirs["read"].append(_seconds(lambda lines=lines: load(lines)))
    sizes = [sum(path.stat().st_size for path in place.iterdir()) / 1e6 for place in (blocks, lines)]
    case = f"{len(entries):,} traces, {name}"
    return [
        Row(f"{case}: size", PEER, sizes[0], sizes[1], "MB", sizes[1] / sizes[0]),
        paired_row(f"{case}: write", PEER, ours["write"], theirs["write"], "s", lower_is_better=True),
        paired_row(f"{case}: read all", PEER, ours["read"], theirs["read"], "s", lower_is_better=True),
    ]


def _lists(templates: list[Entry], count: int, folder: Path, repetitions: int) -> list[Row]:
    entries = _many(templates, count)
    folder.mkdir()
    with TraceWriter(folder) as writer:
        while chunk := [entry for _, entry in zip(range(STEP), entries, strict=False)]:
            writer.append(chunk)
    lines = folder / "lines"
    save(lines, load(folder))
    index = folder / "i.sqlite"
    (folder / "blocks").mkdir()
    (folder / "traces.blocks").rename(folder / "blocks" / "traces.blocks")
    made = _seconds(lambda: Library(folder / "blocks", index).close())
    read = _seconds(lambda: load(folder / "blocks"))
    rows = [
        Row(
            f"index of {count:,} traces: size against the blocks",
            "blocks",
            index.stat().st_size / 1e6,
            (folder / "blocks" / "traces.blocks").stat().st_size / 1e6,
            "MB",
        ),
        Row(f"index of {count:,} traces: made once, against reading all", "blocks", made, read, "s"),
    ]
    for name, query in QUERIES.items():
        ours = [_seconds(lambda query=query: _page(folder / "blocks", index, query)) for _ in range(repetitions)]
        theirs = [_seconds(lambda: _scan(lines)) for _ in range(repetitions)]
        rows.append(paired_row(f"{count:,} traces: open, {name}", PEER, ours, theirs, "s", lower_is_better=True))
    return rows


def _large(count: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder, index = Path(name) / "run", Path(name) / "i.sqlite"
        entries = _many(_short(), count)
        with TraceWriter(folder) as writer:
            while chunk := [entry for _, entry in zip(range(STEP), entries, strict=False)]:
                writer.append(chunk)
        Library(folder, index).close()
        program = "import sys; from benchmarks.traces import look; look(*sys.argv[1:])"
        done = subprocess.run(
            [sys.executable, "-c", program, str(folder), str(index)], check=True, capture_output=True, text=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        sizes = [path.stat().st_size / 1e6 for path in (folder / "traces.blocks", index)]
    bounds = {"open": (OPEN_BOUND, "s"), "memory": (MEMORY_BOUND, "MB")}
    rows = []
    for case, ours in found.items():
        bound, unit = bounds.get(case, (PAGE_BOUND, "s"))
        rows.append(Row(f"{count:,} traces: {case}", "bound", ours, bound, unit, bound / ours))
    return [*rows, Row(f"{count:,} traces: index against the blocks", "blocks", sizes[1], sizes[0], "MB")]


def look(folder: str, index: str) -> None:
    """Open, ask everything, read a trace; print seconds, the least of three, and the memory that it took in MB."""
    found: dict[str, float] = {}
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here, not from the imports
    before = _memory_mb("VmRSS")
    started = time.perf_counter()
    with Library(Path(folder), Path(index)) as library:
        found["open"] = time.perf_counter() - started
        for name, query in QUERIES.items():
            found[name] = _least(lambda query=query: (library.count(query), library.rows(query)))
        total = library.count()
        found["filters' values and counts"] = _seconds(library.facets)
        found["page in the middle, by score"] = _least(lambda: library.rows(Query(order="score"), 50, total // 2))
        found["read one trace"] = _seconds(lambda: library.entry(total // 2))
    found["memory"] = max(0.1, _memory_mb("VmHWM") - before)
    print(json.dumps(found))


def _page(folder: Path, index: Path, query: Query) -> None:
    with Library(folder, index) as library:
        library.count(query)
        library.rows(query)


def _scan(folder: Path) -> int:
    """What a page of a list costs without an index: every line is read."""
    with (folder / "traces.jsonl").open(encoding="utf-8") as traces:
        return sum(json.loads(line)["outcome"] == "finished" for line in traces)


def _append(folder: Path, entries: list[Entry]) -> None:
    with TraceWriter(folder) as writer:
        for start in range(0, len(entries), STEP):
            writer.append(entries[start : start + STEP])


def _many(templates: list[Entry], count: int) -> Iterator[Entry]:
    """`templates` again and again, each time with other ids and log-probabilities."""
    draw = np.random.default_rng(0)
    for number in range(count):
        entry = templates[number % len(templates)]
        nodes = tuple(
            replace(node, call=replace(node.call, logprobs=_logprobs(draw, len(node.call.token_ids))))
            if node.call
            else node
            for node in entry.trace.nodes
        )
        trace = replace(entry.trace, id=digest(str(number)), seed=number, nodes=nodes)
        yield replace(entry, trace=trace, labels={"step": number // STEP})


def _logprobs(draw: np.random.Generator, count: int) -> tuple[float, ...]:
    return tuple(np.log(draw.uniform(size=count)).astype(np.float32).tolist())


def _short() -> list[Entry]:
    words = " ".join((*lookup.WORDS, *lookup.HELDOUT_WORDS))
    tokenizer = train_tokenizer([f"find see value read list error invalid no such file tool {words}"] * 10, 500)
    grader = lookup.lookup_grader()
    tasks = [task for task in lookup.ENVIRONMENT.generate(32, 1, "train") for _ in range(GROUP)]
    with Arena(load_program("files"), tokenizer, grader, FILE_TOOLS, 5, 12) as arena:
        traces = arena.roll(tasks, range(len(tasks)), ScriptedSampler(tokenizer, lookup.hasty(0.6)), 256)
    scores = grader.grade(tasks, traces)
    return [Entry(trace, task, score) for task, trace, score in zip(tasks, traces, scores, strict=True)]


def _long() -> list[Entry]:
    draw = random.Random(0)
    made = []
    for number in range(2 * GROUP):
        task = Task(f"t{number // GROUP}", (Message("user", "do it"),), GraderRef("g", "1"), "42", "long", "agent")
        history = [random.Random(number // GROUP).randrange(4000) for _ in range(400)]
        nodes = [Node((), task.messages[0])]
        for _ in range(20):
            reply = tuple(draw.randrange(4000) for _ in range(60))
            call = ModelCall(tuple(history), reply, (0.0,) * len(reply))
            nodes.append(
                Node((len(nodes) - 1,), Message("assistant", " ".join(map(str, reply))), call, digest(str(history)))
            )
            result = [draw.randrange(4000) for _ in range(300)]
            text = Message("tool", " ".join(map(str, result)))
            nodes.append(Node((len(nodes) - 1,), text, use=ToolUse("read", {"name": "a"})))
            history += [*reply, *result]
        trace = Trace("", task.id, tuple(nodes), 0, "long@1", "finished", {"turns": 20})
        made.append(Entry(trace, task, Score("graded", task.grader, 1.0)))
    return made


def _memory_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def _least(action: Callable[[], object]) -> float:
    return min(_seconds(action) for _ in range(3))


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
