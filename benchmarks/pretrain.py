"""Pretraining speed: our loop against transformers' Llama and litgpt's GPT of equal shape, and against its own matmuls.

    python -m benchmarks.pretrain --peers PYTHON [--sizes 5M 20M 135M] [--threads 1] [--json] [--quick]

PYTHON is an interpreter of an environment of its own with the same torch, transformers and litgpt. Every contestant
trains from the same shape on the same tokens with AdamW, clipping and torch.compile, in a process of its own, and they
take turns step by step, so that a neighbour on the machine slows all of them. Like stands beside like: everybody with
fp32 weights under bf16 autocast, and everybody with bf16 weights and moments (ours rounded at random, theirs to the
nearest). The smaller ratio counts. Memory is the largest resident set during timed steps.

With one thread the clock is processor time (a shared machine does not count), otherwise wall time. --quick measures the
smallest size with few repetitions, and says so. A peer that is missing or fails ends the benchmark.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.report import Row, paired_row, show

ROOT = Path(__file__).parent.parent
WARMUP_STEPS = 3  # compiling, first touches of memory


@dataclass(frozen=True)
class Case:
    """A Llama-like shape (SwiGLU, grouped keys, tied) and the tokens of a step."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn_width: int
    rows: int
    length: int


CASES = {
    "5M": Case(8192, 256, 4, 4, 2, 704, rows=16, length=256),
    "20M": Case(16384, 384, 9, 6, 2, 1024, rows=16, length=256),
    "135M": Case(49152, 576, 30, 9, 3, 1536, rows=8, length=256),  # SmolLM2-135M
}


@dataclass(frozen=True)
class Contestant:
    """What runs: `kind` is ours, matmuls, transformers or litgpt; `variant` its precision or optimiser."""

    kind: str
    variant: str

    @property
    def label(self) -> str:
        return f"{self.kind} ({self.variant})"


OURS, OURS_BF16, MUON, DOCUMENTS = (
    Contestant("ours", name) for name in ("autocast", "bf16 weights", "muon", "documents")
)
MATMULS = Contestant("matmuls", "bfloat16")
KINDS = ("transformers", "litgpt")
# Who takes turns with whom; all at once would not fit in memory at the largest size.
GROUPS: Sequence[Sequence[Contestant]] = (
    (OURS, MATMULS, *(Contestant(kind, "autocast") for kind in KINDS)),
    (OURS_BF16, *(Contestant(kind, "bf16 weights") for kind in KINDS)),
    (OURS, MUON, DOCUMENTS),
)


class Worker:
    """One contestant in its own process, told over pipes when to take a step."""

    def __init__(self, contestant: Contestant, case: Case, threads: int, peers: str, log: Path) -> None:
        self.contestant, self._log = contestant, log
        ours = contestant.kind in ("ours", "matmuls")
        script = ROOT / "benchmarks" / ("pretrain_ours.py" if ours else "pretrain_peers.py")
        task = json.dumps({**asdict(contestant), "case": asdict(case), "threads": threads, "warmup": WARMUP_STEPS})
        path = os.pathsep.join(map(str, (ROOT, ROOT / "src"))) if ours else ""
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
        self._process = subprocess.Popen(
            [sys.executable if ours else peers, str(script), task],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env=environment,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()

    def read(self) -> dict[str, Any]:
        """Its next answer: what it is once it is warm, the seconds of a step, or its peak."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        tail = self._log.read_text()[-2000:]
        raise SystemExit(f"{self.contestant.label} failed; is it installed where --peers says?\n{tail}")

    def ask(self, order: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            print(order, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise SystemExit(f"{self.contestant.label} ended in mid-run; did the memory suffice?") from None
        return self.read()


@dataclass(frozen=True)
class Timed:
    """One contestant's repetitions at one size."""

    name: str
    seconds: Sequence[float]
    peak_bytes: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=sys.executable, help="Python with torch, transformers and litgpt")
    parser.add_argument("--sizes", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="the smallest size, fewer tokens and repetitions")
    options = parser.parse_args()
    cases = {name: CASES[name] for name in options.sizes}
    groups = GROUPS
    if options.quick:
        cases, options.repetitions = {"5M": replace(CASES["5M"], rows=2)}, 3
        groups = GROUPS[:1]
    rows: list[Row] = []
    for name, case in cases.items():
        for group in groups:
            rows += group_rows(name, case, measure(group, case, options.threads, options.peers, options.repetitions))
    show("pretrain", rows, as_json=options.json, quick=options.quick, threads=options.threads)
    return 0


def measure(
    contestants: Sequence[Contestant], case: Case, threads: int, peers: str, repetitions: int
) -> dict[Contestant, Timed]:
    """All warm up together; then they take a step in turn, each round from another one on."""
    with tempfile.TemporaryDirectory(prefix="noria-pretrain-") as folder, ExitStack() as stack:
        workers = []
        for place, contestant in enumerate(contestants):
            worker = Worker(contestant, case, threads, peers, Path(folder) / f"{place}.log")
            workers.append(stack.enter_context(worker))
        names = {
            each: f"{worker.read()['name']}, {each.variant}" for each, worker in zip(contestants, workers, strict=True)
        }
        seconds: dict[Contestant, list[float]] = {contestant: [] for contestant in contestants}
        for turn in range(repetitions):
            for place in range(len(workers)):
                worker = workers[(place + turn) % len(workers)]
                seconds[worker.contestant].append(worker.ask("step")["seconds"])
        peaks = {worker.contestant: worker.ask("peak")["bytes"] for worker in workers}
    return {each: Timed(names[each], seconds[each], peaks[each]) for each in contestants}


def group_rows(size: str, case: Case, timed: Mapping[Contestant, Timed]) -> list[Row]:
    """Speed and memory against each peer; then our options against our own AdamW step, and that against its matmuls."""
    tokens = case.rows * case.length

    def speed(what: str, ours: Contestant, theirs: Contestant) -> Row:
        rates = ([tokens / second for second in timed[each].seconds] for each in (ours, theirs))
        return paired_row(f"{size}: {what}", timed[theirs].name, *rates, "tokens/s", lower_is_better=False)

    rows = []
    own = OURS_BF16 if OURS_BF16 in timed else OURS
    for peer in (each for each in timed if each.kind in KINDS):
        ours, theirs = timed[own].peak_bytes, timed[peer].peak_bytes
        rows.append(speed("speed", own, peer))
        rows.append(
            Row(f"{size}: peak memory", timed[peer].name, ours / 2**30, theirs / 2**30, "GiB", ratio=theirs / ours)
        )
    rows += [speed(f"speed with {each.variant}", each, OURS) for each in (MUON, DOCUMENTS) if each in timed]
    if MATMULS in timed:
        pair = timed[MATMULS].seconds, timed[OURS].seconds
        whole = paired_row(f"{size}: its matmuls / whole step", "bound 1/1.6", *pair, "seconds", lower_is_better=False)
        rows.append(whole)
    return rows


if __name__ == "__main__":
    sys.exit(main())
