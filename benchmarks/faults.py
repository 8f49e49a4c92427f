"""Inject faults into small real runs: is each detected, blamed on the right cause, and got over? What does it cost?

    python -m benchmarks.faults --json
    python -m benchmarks.faults --quick         # faults of a process alone, no overhead: about a minute

A run "got over" a fault of hardware if it ends in the same bits as one without it; a fault of data, if its loss on
fixed batches is within the spread of runs with other seeds. Overhead is CPU time, background threads included, against
a bare loop of the same steps. Exits with 1 if a fault was missed, or if the overhead is certainly above 3%.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import Row, paired_row, show

STEPS = 300
OVERHEAD_LIMIT = 1.03


@dataclass(frozen=True)
class Case:
    """A fault, where it is injected, and what should be said of it."""

    fault: str
    layout: str
    processes: int
    kind: str
    cause: str
    same_bits: bool = True
    rank: int | None = None


@dataclass(frozen=True)
class Outcome:
    case: str
    detected: bool
    attributed: bool
    recovered: bool
    loss: float
    undisturbed: float
    noise: float
    said: str


ALONE = (
    Case("weight_bit", "alone", 1, "hardware", "hardware", rank=0),
    Case("weight_bit_low", "alone", 1, "hardware", "hardware", rank=0),
    Case("gradient_bit", "alone", 1, "hardware", "hardware", rank=0),
    Case("nan_batch", "alone", 1, "skipped_update", "data or optimiser", same_bits=False),
    Case("poisoned_range", "alone", 1, "rolled_back", "data or optimiser", same_bits=False),
)
TOGETHER = (
    Case("weight_bit_low", "replicate", 2, "hardware", "hardware", rank=1),
    Case("gradient_bit", "replicate", 2, "hardware", "hardware", rank=1),
    Case("weight_bit_low", "shard", 2, "hardware", "hardware", rank=1),
    Case("slow_rank", "replicate", 2, "straggler", "hardware", rank=1),
    Case("killed_rank", "replicate", 2, "worker_died", "hardware", rank=1),
    Case("killed_rank", "shard", 2, "worker_died", "hardware", rank=1),
    Case("replica_drift", "replicate", 3, "hardware", "hardware", rank=2),
)


class Bench:
    """Runs jobs in a folder; undisturbed ones only once."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._calm = folder, dict[tuple[Any, ...], dict[str, Any]]()

    def calm(self, layout: str, processes: int, seed: int = 0) -> dict[str, Any]:
        key = (layout, processes, seed)
        if key not in self._calm:
            self._calm[key] = self.job("none", layout, processes, seed)[0]
        return self._calm[key]

    def noise(self) -> float:
        """The spread of the final losses of runs with three seeds of the weights."""
        losses = [self.calm("alone", 1, seed)["heldout"] for seed in (0, 1, 2)]
        return max(losses) - min(losses)

    def job(
        self, fault: str, layout: str, processes: int, seed: int = 0
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """(result, events as they were told)."""
        from noria.training.launch import launch

        folder = self._folder / f"{fault}-{layout}-{processes}-{seed}"
        told: list[Any] = []
        launch(command(folder, fault, layout, seed), processes, told.append)
        return json.loads((folder / "result.json").read_text()), [line for line in told if "cause" in line]

    def outcome(self, case: Case) -> Outcome:
        result, events = self.job(case.fault, case.layout, case.processes)
        calm = self.calm(case.layout, case.processes)
        found = [event for event in events if event["kind"] == case.kind]
        is_right = bool(found) and all(
            event["cause"] == case.cause and (case.rank is None or list(event["evidence"]["ranks"]) == [case.rank])
            for event in found
        )
        # A false alarm is an error too, except for ranks that a busy machine really slows.
        strangers = [e for e in events if e["cause"] != case.cause and e["kind"] not in ("straggler", case.kind)]
        loss, undisturbed = result["heldout"], calm["heldout"]
        same = result["weights"] == calm["weights"]
        recovered = same if case.same_bits else abs(loss - undisturbed) <= self.noise()
        name = f"{case.fault}, {case.layout}" + (f" x {case.processes}" if case.processes > 1 else "")
        said = found[0]["message"] if found else ""
        return Outcome(name, bool(found), is_right and not strangers, recovered, loss, undisturbed, self.noise(), said)

    def full_disk(self) -> Outcome:
        """The run stops in words; started again it ends in the undisturbed bits."""
        folder = self._folder / "full_disk"
        said = words(command(folder, "full_disk", "alone", 0))
        return self._after_refusal("full disk in a save", folder, said, "is full", "is intact")

    def altered(self) -> Outcome:
        """A flipped byte of the newest checkpoint is refused; without it the run goes on from the one before."""
        from noria.training.checkpoint import complete

        folder = self._folder / "altered"
        subprocess.run(command(folder, "left_early", "alone", 0), check=True, stdout=subprocess.DEVNULL)
        shutil.copytree(complete(folder / "checkpoints")[-1], folder / "checkpoints" / "step-00000026")
        newest = complete(folder / "checkpoints")[-1]
        part = next(newest.glob("*.distcp"))
        raw = bytearray(part.read_bytes())
        raw[len(raw) // 2] ^= 1
        part.write_bytes(raw)
        said = words(command(folder, "none", "alone", 0))
        shutil.rmtree(newest)
        return self._after_refusal("altered checkpoint", folder, said, "altered", "remove the folder")

    def _after_refusal(self, case: str, folder: Path, said: str, fault: str, advice: str) -> Outcome:
        words(command(folder, "none", "alone", 0))
        result, calm = json.loads((folder / "result.json").read_text()), self.calm("alone", 1)
        same = result["weights"] == calm["weights"]
        losses = result["heldout"], calm["heldout"]
        return Outcome(case, fault in said, fault in said and advice in said, same, *losses, self.noise(), said)


def command(folder: Path, fault: str, layout: str, seed: int) -> list[str]:
    options = ["--fault", fault, "--layout", layout, "--steps", str(STEPS), "--model-seed", str(seed)]
    return [sys.executable, "-m", "benchmarks.fault_job", str(folder), *options]


def words(arguments: Sequence[str]) -> str:
    """What a job said when it refused to go on; empty if it did not."""
    told = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=False).stdout.splitlines()
    return next((json.loads(line)["message"] for line in told if '"error"' in line), "")


def overhead(pairs: int, steps: int) -> Row:
    """CPU seconds a step, paired: guard, metrics into SQLite and background checkpoints against a bare loop."""
    on: list[float] = []
    off: list[float] = []
    with tempfile.TemporaryDirectory(prefix="noria-overhead-") as folder:
        for pair in range(pairs):
            runs: list[tuple[list[float], Callable[[], float]]] = [
                (on, lambda pair=pair: guarded(Path(folder) / str(pair), steps)),
                (off, lambda: bare(steps)),
            ]
            for seconds, measure in runs if pair % 2 else runs[::-1]:
                seconds.append(measure())
    case = "guard, metrics, a checkpoint every 15 s and every 100 steps (1M parameters, 4,096 tokens a step)"
    return paired_row(case, "the same steps bare", on, off, "CPU seconds a step", lower_is_better=True)


def _overhead_setup(steps: int) -> Any:
    import torch

    from noria.model import ModelConfig, Transformer
    from noria.training import Annotated, GuardConfig, LoopConfig, TokenBatch

    torch.set_num_threads(1)
    shape = ModelConfig(vocab_size=2048, width=128, layers=4, heads=4, kv_heads=2, ffn_width=512, context=256)

    def annotate(step: int) -> Annotated:
        tokens_BT = torch.randint(0, 2048, (16, 257), generator=torch.Generator().manual_seed(step))
        return Annotated(TokenBatch(tokens_BT, torch.ones(16, 256)))

    config = LoopConfig(steps=steps, learning_rate=0.005, micro_batch_rows=16, guard=GuardConfig(spikes=True))
    return Transformer(shape, seed=0), annotate, config


def guarded(folder: Path, steps: int) -> float:
    from noria.artifacts.runs import RunDatabase
    from noria.training import Progress, train

    model, annotate, config = _overhead_setup(steps)
    folder.mkdir()
    runs = RunDatabase(folder / "runs.sqlite")
    number = runs.start_run("overhead", {})
    progress = Progress(folder / "p", on_step=lambda step, _, metrics: runs.log(number, "train", step, metrics))
    started = time.process_time()
    train(model, annotate, config, progress)
    seconds = (time.process_time() - started) / steps
    runs.close()
    return seconds


def bare(steps: int) -> float:
    from noria.training.heap import kept_mapped
    from noria.training.loop import optimiser_step
    from noria.training.objectives import Objective
    from noria.training.optim import MuonAdamW

    model, annotate, config = _overhead_setup(steps)
    optimizer = MuonAdamW(model, config.learning_rate, config.weight_decay)
    model.train()
    started = time.process_time()
    with kept_mapped():  # as `train` does, which is no overhead but the contrary
        for step in range(steps):
            optimiser_step(model, optimizer, annotate(step).batch, config, config.rate(step), Objective())
    return (time.process_time() - started) / steps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only faults of a process alone, and no overhead")
    parser.add_argument("--json", action="store_true", help="the result as one JSON object; the rest goes to stderr")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="noria-faults-") as folder:
        bench = Bench(Path(folder))
        outcomes = [bench.outcome(case) for case in (ALONE if options.quick else ALONE + TOGETHER)]
        outcomes += [bench.full_disk(), bench.altered()]
    rows = [Row(item.case, "undisturbed", item.loss, item.undisturbed, "nats a token") for item in outcomes]
    for item in outcomes:
        marks = [f"{'' if getattr(item, name) else 'NOT '}{name}" for name in ("detected", "attributed", "recovered")]
        print(f"{item.case}: {', '.join(marks)}: {item.said}", file=sys.stderr, flush=True)
    if not options.quick:
        rows.append(overhead(pairs=6, steps=100))
    show("faults", rows, as_json=options.json, quick=options.quick, faults=[asdict(item) for item in outcomes])
    missed = [item for item in outcomes if not (item.detected and item.attributed and item.recovered)]
    cost = rows[-1].interval if not options.quick else None
    return 1 if missed or (cost is not None and 1.0 / cost[1] > OVERHEAD_LIMIT) else 0


if __name__ == "__main__":
    sys.exit(main())
