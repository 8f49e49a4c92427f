"""Kill a run with -9 again and again, at least once in each stage and at each point of publication, let it finish, and
compare every artifact key and every hash under content/ with an undisturbed run on the same machine.

    python -m benchmarks.chaos --recipe recipes/debug.toml --kills 20
    python -m benchmarks.chaos --quick          # a toy chain of steps in place of a recipe

In the middle of a step the killer stands outside: it watches the run database, stops the process group to look, and
kills it there. The instants of publication are aimed at from within, by `benchmarks.chaos_aim`. Exits with 1 on any
difference, and if a stage or publication could not be hit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.report import Row, show
from noria.artifacts.identity import file_hash

Command = Callable[[Path], list[str]]  # the arguments of `python` that make a run in this store
Moment = Literal["running", "before manifest", "before rename", "before clean-up", "after"]
PUBLICATION: tuple[Moment, ...] = ("before manifest", "before rename", "before clean-up")
POLL_SECONDS = 0.02
STOP_SECONDS = 0.1  # a process that still runs after this was starting a child
SLICE_SECONDS = 0.0002  # between two looks at a process that is being stopped


@dataclass(frozen=True)
class StepFacts:
    """A step of the undisturbed run: its place in the chain and how long it took."""

    position: int
    name: str
    stage: str
    key: str
    seconds: float


@dataclass(frozen=True)
class Target:
    """When to kill: in a step after a fraction of its undisturbed time, or at a point of its publication."""

    step: StepFacts
    moment: Moment
    fraction: float = 0.0


@dataclass(frozen=True)
class Kill:
    """One kill: what it aimed at and where it landed; `landed_step` is empty if the run ended before."""

    stage: str
    step: str
    aimed: str
    landed_stage: str
    landed_step: str
    landed: str


@dataclass(frozen=True)
class Outcome:
    """Snapshots (key -> path -> hash) of both stores, the kills, what was left behind, and the seconds of both."""

    calm: dict[str, dict[str, str]]
    stormy: dict[str, dict[str, str]]
    kills: list[Kill]
    stages: list[str]
    left_behind: list[str]
    seconds: tuple[float, float]

    @property
    def differences(self) -> list[str]:
        """Keys and files that only one of the two has, or that differ."""
        found = [f"artifact {key}: only in one store" for key in sorted(self.calm.keys() ^ self.stormy.keys())]
        for key in sorted(self.calm.keys() & self.stormy.keys()):
            ours, theirs = self.stormy[key], self.calm[key]
            found += [f"{key}/{name}" for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
        return found

    @property
    def not_hit(self) -> list[str]:
        """Stages and points of publication that no kill landed on: what this run can't speak for."""
        stages = {kill.landed_stage for kill in self.kills}
        moments = {kill.landed for kill in self.kills}
        return [stage for stage in self.stages if stage not in stages] + [
            moment for moment in PUBLICATION if moment not in moments
        ]


def storm(command: Command, folder: Path, kills: int, seed: int = 0) -> Outcome:
    """Run `command(store)` undisturbed, then in a second store through `kills` kills and once to its end."""
    calm, stormy, log = folder / "calm", folder / "stormy", folder / "log.txt"
    started = time.monotonic()
    finish(command(calm), log)
    middle = time.monotonic()
    steps = steps_of(calm)
    patience = 10 * (middle - started) + 120
    landed = []
    for target in choose(steps, kills, seed):
        landed.append(kill_at(command(stormy), stormy, target, steps, log, patience))
        said = f"kill {len(landed)}: aimed at {target.step.name} {target.moment}, landed {landed[-1].landed}"
        print(said, file=sys.stderr, flush=True)
    finish(command(stormy), log)
    left = [
        str(path.relative_to(stormy)) for name in ("work", "trash", "damaged") for path in (stormy / name).glob("*")
    ]
    seconds = (middle - started, time.monotonic() - middle)
    stages = list(dict.fromkeys(step.stage for step in steps))
    return Outcome(snapshot(calm), snapshot(stormy), landed, stages, left, seconds)


def choose(steps: Sequence[StepFacts], kills: int, seed: int) -> list[Target]:
    """The longest step of each stage, each point of publication, and random ones for the rest, in the chain's order."""
    dice = random.Random(seed)
    longest: dict[str, StepFacts] = {}
    for step in steps:
        if step.seconds >= longest.get(step.stage, step).seconds:
            longest[step.stage] = step
    targets = [Target(step, "running", dice.uniform(0.2, 0.8)) for step in longest.values()]
    targets += [Target(dice.choice(steps), moment) for moment in PUBLICATION]
    if kills < len(targets):
        raise SystemExit(
            f"--kills {kills} is too few: {len(targets)} hit each stage and each point of publication once"
        )
    while len(targets) < kills:
        moment = dice.choice(("running", "running", *PUBLICATION))
        targets.append(Target(dice.choice(steps), moment, dice.uniform(0.0, 1.0)))
    order = ("running", *PUBLICATION)
    return sorted(targets, key=lambda target: (target.step.position, order.index(target.moment), target.fraction))


def kill_at(
    arguments: Sequence[str], store: Path, target: Target, steps: Sequence[StepFacts], log: Path, patience: float
) -> Kill:
    """Start the run, wait for the moment, kill its process group. Where the moment is missed, kill at once."""
    if target.moment in PUBLICATION:
        later = [step.key for step in steps if step.position > target.step.position]
        aim = json.dumps({"key": target.step.key, "moment": target.moment, "later": later})
        arguments = ["-m", "benchmarks.chaos_aim", aim, *arguments[1:]]
    previous = latest_run(store)
    with log.open("a") as out, Victim([sys.executable, *arguments], out) as victim:
        if target.moment in PUBLICATION:
            landed_step, landed = _await_end(victim, store, previous, target, patience)
        else:
            landed_step, landed = _await(victim, store, previous, target, steps, patience)
        victim.check(log)
    stage = next((step.stage for step in steps if step.name == landed_step), "")
    aimed = f"{target.moment} {target.fraction:.0%}" if target.moment == "running" else target.moment
    return Kill(target.step.stage, target.step.name, aimed, stage, landed_step, landed)


def _await_end(victim: Victim, store: Path, previous: int, target: Target, patience: float) -> tuple[str, Moment]:
    """Return, with the victim dead by its own aim, the step and moment where it was."""
    victim.wait(patience, target.step.name)
    now = current_step(store, after_run=previous)
    return (now["step_name"], moment_of(store, now)) if now and victim.killed() else ("", "after")


def _await(
    victim: Victim, store: Path, previous: int, target: Target, steps: Sequence[StepFacts], patience: float
) -> tuple[str, Moment]:
    """Return, with the victim stopped or ended, the step and moment where it is."""
    began, entered = time.monotonic(), 0.0
    positions = {step.key: step.position for step in steps}
    while not victim.ended():
        if time.monotonic() - began > patience:
            raise SystemExit(f"the run did not reach {target.step.name} within {patience:.0f} s; it hangs")
        now = current_step(store, after_run=previous)
        if now is None or positions.get(now["key"], -1) < target.step.position:
            time.sleep(POLL_SECONDS)
            continue
        if now["key"] == target.step.key and now["status"] == "running":
            entered = entered or time.monotonic()
            if time.monotonic() - entered < target.fraction * target.step.seconds:
                time.sleep(POLL_SECONDS / 4)
                continue
        victim.stop()
        return now["step_name"], moment_of(store, now)
    return "", "after"


def moment_of(store: Path, now: dict[str, Any]) -> Moment:
    """Where a stopped run is in the making of its current step."""
    key = now["key"]
    if (store / "artifacts" / key).exists():
        return "before clean-up" if (store / "work" / key).exists() else "after"
    if any((store / "work" / key).glob("*/artifact/manifest.json")):
        return "before rename"
    again = current_step(store, after_run=now["run"] - 1)
    return "before manifest" if again and again["key"] == key and again["status"] == "publishing" else "running"


class Victim:
    """A process group that can be stopped, continued and killed."""

    def __init__(self, command: Sequence[str], out: Any) -> None:
        self.process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)

    def __enter__(self) -> Victim:
        return self

    def __exit__(self, *error: object) -> None:
        self._signal(signal.SIGKILL)
        self.process.wait()

    def ended(self) -> bool:
        return self.process.poll() is not None

    def killed(self) -> bool:
        return self.process.poll() == -signal.SIGKILL

    def wait(self, patience: float, step: str) -> None:
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            raise SystemExit(f"the run did not reach {step} within {patience:.0f} s; it hangs") from None

    def check(self, log: Path) -> None:
        """Fail the benchmark if the command failed of itself: then there is nothing to compare."""
        if not self.killed() and self.process.poll() not in (None, 0):
            raise SystemExit(f"the command failed with {self.process.returncode}:\n{log.read_text()[-3000:]}")

    def stop(self) -> None:
        """Returns when the leader really stands still (or has ended).

        A leader in the middle of starting a child can't stop before the child runs its program, and the child was
        stopped too: so let both go on for a moment and try again.
        """
        while True:
            self._signal(signal.SIGSTOP)
            until = time.monotonic() + STOP_SECONDS
            while time.monotonic() < until:
                if self.ended() or os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOHANG) is not None:
                    return
                time.sleep(SLICE_SECONDS)
            self.go_on()
            time.sleep(SLICE_SECONDS)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if not self.ended():
            os.killpg(self.process.pid, number)


def finish(arguments: Sequence[str], log: Path) -> None:
    command = [sys.executable, *arguments]
    with log.open("a") as out:
        code = subprocess.run(command, stdout=out, stderr=out).returncode
    if code:
        raise SystemExit(f"{' '.join(command)} failed with {code}:\n{log.read_text()[-3000:]}")


def steps_of(store: Path) -> list[StepFacts]:
    """The steps that the runs of a store made, in order."""
    sql = """SELECT step_name, stage, key, (julianday(finished) - julianday(started)) * 86400 AS seconds
             FROM steps WHERE status = 'made' ORDER BY run, position"""
    rows = _query(store, sql)
    return [StepFacts(index, r["step_name"], r["stage"], r["key"], r["seconds"]) for index, r in enumerate(rows)]


def latest_run(store: Path) -> int:
    rows = _query(store, "SELECT MAX(run) AS run FROM runs")
    return (rows[0]["run"] or 0) if rows else 0


def current_step(store: Path, after_run: int) -> dict[str, Any] | None:
    """The last step that a run after `after_run` entered."""
    sql = "SELECT run, step_name, key, status FROM steps WHERE run > ? ORDER BY run DESC, position DESC LIMIT 1"
    rows = _query(store, sql, after_run)
    return rows[0] if rows else None


def _query(store: Path, sql: str, *values: Any) -> list[dict[str, Any]]:
    """Rows of the run database; none while it is not there or being created."""
    if not (store / "runs.sqlite").exists():
        return []
    with closing(sqlite3.connect(f"file:{store / 'runs.sqlite'}?mode=ro", uri=True, timeout=10)) as connection:
        connection.row_factory = sqlite3.Row
        try:
            return [dict(row) for row in connection.execute(sql, values)]
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return []
            raise


def snapshot(store: Path) -> dict[str, dict[str, str]]:
    """key -> path under content/ -> hash, read from the files and not from the manifests."""
    return {artifact.name: dict(_hashes(artifact / "content")) for artifact in sorted((store / "artifacts").iterdir())}


def _hashes(content: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(content.rglob("*")):
        if path.is_file():
            yield path.relative_to(content).as_posix(), file_hash(path)


def rows_of(outcome: Outcome) -> list[Row]:
    calm, stormy, n = outcome.calm, outcome.stormy, len(outcome.kills)
    equal_keys = len(calm.keys() & stormy.keys())
    files = [(key, name) for key in calm for name in calm[key]]
    equal = sum(stormy.get(key, {}).get(name) == calm[key][name] for key, name in files)
    before, after = outcome.seconds
    peer = "undisturbed run"
    return [
        Row("artifact keys equal", peer, equal_keys, len(calm), "keys", equal_keys / len(calm), n=n),
        Row("content hashes equal", peer, equal, len(files), "files", equal / max(len(files), 1), n=n),
        Row("seconds, with the kills", peer, after, before, "s", before / after, n=n),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--recipe", type=Path, help="the recipe to run and kill; required unless --quick")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of moments")
    parser.add_argument("--quick", action="store_true", help="a toy chain of four steps and 10 kills: half a minute")
    parser.add_argument("--json", action="store_true", help="the result as one JSON object; the rest goes to stderr")
    options = parser.parse_args()
    if not options.quick and options.recipe is None:
        parser.error("name a recipe with --recipe, e.g. recipes/debug.toml, or use --quick")
    if options.quick:
        prefix = ["-m", "benchmarks.chaos_chain"]
    else:
        prefix = ["-m", "noria", "run", str(options.recipe)]
    with tempfile.TemporaryDirectory(prefix="noria-chaos-") as folder:
        kills = min(options.kills, 10) if options.quick else options.kills
        outcome = storm(lambda store: [*prefix, "--store", str(store)], Path(folder), kills, options.seed)
    extra: dict[str, list[Any]] = {
        "kills": [asdict(kill) for kill in outcome.kills],
        "differences": outcome.differences,
        "not_hit": outcome.not_hit,
        "left_behind": outcome.left_behind,
    }
    for name in ("differences", "not_hit", "left_behind"):
        for line in extra[name]:
            print(f"{name.replace('_', ' ')}: {line}", file=sys.stderr)
    show("chaos", rows_of(outcome), as_json=options.json, quick=options.quick, **extra)
    return 1 if outcome.differences or outcome.not_hit or outcome.left_behind else 0


if __name__ == "__main__":
    sys.exit(main())
