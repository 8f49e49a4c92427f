"""What weights in 8 and 4 bits buy: our engine in int8 and int4 against itself in bfloat16 and float32, same run.

    python -m benchmarks.precisions [--batches 1 8 64] [--threads 2] [--repetitions 5] [--json] [--quick]

SmolLM2-135M-Instruct, 32 random ids of prompt, 128 new ids, greedy. Every precision runs in a process of its own, on a
model that it consumed; they take turns. Rows: tokens a second; bytes of weights kept; resident memory of the process
after generating, cache and libraries included. The peer is the same engine in another precision.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.generate import NEW_TOKENS, QUICK_TOKENS, Contestant, Machine, take_turns
from benchmarks.grpo_step import model_folders
from benchmarks.report import Row, paired_row, show

SMALL = tuple(Contestant("ours", precision) for precision in ("int8", "int4"))
LARGE = tuple(Contestant("ours", precision) for precision in ("bfloat16", "float32"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="fewer new ids and rounds")
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="noria-precisions-") as scratch:
        models = {"ours": model_folders(Path(scratch))["ours"]}
        tokens = QUICK_TOKENS if options.quick else NEW_TOKENS
        machine = Machine({"ours": sys.executable}, models, options.threads, tokens, Path(scratch))
        for batch in options.batches:
            rows += batch_rows(machine, batch, 2 if options.quick else options.repetitions)
    show("precisions", rows, as_json=options.json, quick=options.quick, threads=options.threads, load=os.getloadavg())
    return 0


def batch_rows(machine: Machine, batch: int, repetitions: int) -> list[Row]:
    timed = take_turns(machine, [*SMALL, *LARGE], batch, repetitions)
    rows: list[Row] = []
    for small in SMALL:
        for large in LARGE:
            ours, theirs = timed[small], timed[large]
            case, peer = f"batch {batch}, {small.precision}", f"{theirs.name}, {large.precision}"
            rates = ours.rates(machine.tokens * batch), theirs.rates(machine.tokens * batch)
            rows.append(paired_row(case, peer, *rates, "tokens/s", lower_is_better=False))
            for name, told in (("kept_bytes", "MB of weights"), ("resident_bytes", "MB resident")):
                sizes = [[turn[name] / 1e6 for turn in each.turns] for each in (ours, theirs)]
                rows.append(paired_row(case, peer, *sizes, told, lower_is_better=True))
    return rows


if __name__ == "__main__":
    sys.exit(main())
