"""Runs steps in order: reuse what is published, resume what is half-done, make the rest; one process a key."""

from __future__ import annotations

import errno
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from noria.artifacts.aliases import now
from noria.artifacts.errors import Damaged, Interrupted, StepFailed, StoreError, explain
from noria.artifacts.files import sweep
from noria.artifacts.locks import Busy, hold
from noria.artifacts.manifest import Manifest, environment, plain_metrics
from noria.artifacts.plan import Plan, PlannedStep, Planner
from noria.artifacts.progress import Meter, Progress, Status
from noria.artifacts.runs import PARTIAL, RunDatabase
from noria.artifacts.step import Step, StepContext
from noria.artifacts.store import Artifact, Store
from noria.artifacts.work import Work

Observer = Callable[[Progress], None]
_DISK_WRITES_SECONDS = 0.5  # the run database is told of progress this often at most


class Executor:
    """Runs and plans steps against one store.

    `run_name` is the recipe's name (and turn): what "last time" means in a plan. `strict_code` refuses to reuse what
    other code made. `repair` sets damaged artifacts aside and makes them anew. None of these is part of a key.
    """

    def __init__(
        self,
        store: Store,
        run_name: str = "run",
        *,
        strict_code: bool = False,
        repair: bool = False,
        on_progress: Observer = lambda progress: None,
    ) -> None:
        self.store = store
        self.run_name = run_name
        self.strict_code = strict_code
        self.repair = repair
        self.on_progress = on_progress

    def plan(self, steps: Sequence[Step]) -> Plan:
        """What `run` would do, and why. Changes nothing."""
        _check_names(steps)
        return Planner(self.store, self.run_name).plan(steps)

    def run(
        self, steps: Sequence[Step], recipe: Mapping[str, Any] | None = None, *, whole: bool = True
    ) -> dict[str, Artifact]:
        """The artifact of each step by its name. `recipe` is recorded with the run, and that `steps` are not all of its
        steps where `whole` is false: the last whole run is what gc keeps.

        Raises Interrupted on Ctrl-C, StepFailed when a step raises, StoreError when the store can't be used. Whatever
        was finished stays published and whatever was half-done is kept, so the same call goes on from there.
        """
        self.store.prepare()
        runs = self.store.runs
        sweep(self.store.trash)
        with self.store.in_use(), _alive(self.store):
            plan = self._accept(self.plan(steps))
            number = runs.start_run(self.run_name, recipe or {})
            if not whole:
                runs.event(number, "", PARTIAL, f"only {', '.join(step.name for step in steps)}")
            made: dict[str, Artifact] = {}
            status = "failed"
            try:
                for position, (step, planned) in enumerate(zip(steps, plan.steps, strict=True)):
                    one = _OneStep(self, number, position, step, planned)
                    try:
                        made[step.name] = one.artifact(made)
                    except KeyboardInterrupt:
                        status = "interrupted"
                        one.tell("interrupted")
                        raise Interrupted(step.name) from None
                status = "made"
            finally:
                with suppress(StoreError) if status == "failed" else nullcontext():
                    runs.finish_run(number, status)  # a full disk fails here too and must not hide the first failure
        return made

    def _accept(self, plan: Plan) -> Plan:
        """Refuse before any work what would be refused later."""
        if plan.problems and not self.repair:
            raise plan.problems[0]
        other = [step.name for step in plan.steps if step.code_changed]
        if self.strict_code and other:
            raise StoreError(
                f"--strict-code: other code made {', '.join(other)}. Raise the version of each such step, "
                "take back the change of code, or run without --strict-code"
            )
        return plan


@dataclass
class _OneStep:
    """One step of one run, from lock to published artifact."""

    executor: Executor
    run: int
    position: int
    step: Step
    planned: PlannedStep
    meter: Meter = field(default_factory=Meter)
    last: Progress = field(init=False)
    _listed: bool = False
    _written: float = 0.0

    def __post_init__(self) -> None:
        self.last = Progress(self.step.name, self.step.stage, self.step.key, "waiting")

    @property
    def store(self) -> Store:
        return self.executor.store

    @property
    def runs(self) -> RunDatabase:
        return self.store.runs

    def artifact(self, made: Mapping[str, Artifact]) -> Artifact:
        step, store = self.step, self.store
        if (present := self._published()) is not None:
            return self._reused(present)
        inputs = {role: self._input(role, upstream, made) for role, upstream in step.inputs.items()}
        with store.lock(step.key, on_wait=lambda holder: self.tell("waiting", f"{holder} is making it")):
            if (present := store.get(step.key)) is not None:  # made by the process that was waited for
                return self._reused(present)
            work = store.work(step.key, step.code)
            if not self._adopted(work):
                self._make(work, inputs)
        artifact = store.get(step.key)
        if artifact is None:
            raise StoreError(f"{store.artifacts / step.key} vanished after it was published; run again")
        self.tell("made")
        return artifact

    def tell(self, status: Status, message: str = "") -> None:
        """Tell the observer and the run database of a new status."""
        step, runs = self.step, self.runs
        if not self._listed:
            self._listed = True
            runs.start_step(self.run, step.name, self.position, step.stage, step.key, status, self.planned.reason)
        finished = {"finished": now()} if status in ("made", "reused", "failed", "interrupted") else {}
        runs.update_step(self.run, step.name, status=status, **finished)
        self.last = replace(self.last, status=status, message=message, seconds=self.meter.seconds)
        self.executor.on_progress(self.last)

    def _published(self) -> Artifact | None:
        try:
            return self.store.get(self.step.key)
        except Damaged as damage:
            if not self.executor.repair:
                raise
            aside = self.store.set_aside(self.step.key)
            self._event("damaged", f"{damage.args[0]}. It lies now in {aside}")
            return None

    def _reused(self, artifact: Artifact) -> Artifact:
        folder = self.store.work(self.step.key, self.step.code).folder.parent
        if folder.exists():  # killed between rename and clean-up
            with suppress(Busy), self.store.lock(self.step.key, wait=False):
                self.store.work(self.step.key, self.step.code).discard()
        self.tell("reused", self.planned.reason)
        return artifact

    def _input(self, role: str, upstream: Step | Artifact, made: Mapping[str, Artifact]) -> Artifact:
        if isinstance(upstream, Artifact):
            return upstream
        found = made.get(upstream.name) or self.store.get(upstream.key)
        if found is None:
            raise StoreError(
                f"step {self.step.name} needs {upstream.name} (as {role}), which was not made yet: "
                "run the recipe from there, without --only or --from"
            )
        return found

    def _adopted(self, work: Work) -> bool:
        """Finish a publication that a kill cut off after the manifest was written."""
        if not work.is_whole():
            return False
        self.tell("publishing", "it was whole when it was killed")
        try:
            work.adopt()
        except Damaged as damage:
            self._event("damaged", f"{damage.args[0]}. It was never published and is made again")
            return False
        return True

    def _make(self, work: Work, inputs: Mapping[str, Artifact]) -> None:
        resumed = work.has_progress()
        afresh = not resumed and work.left_by_other_code()
        message = f"resumed; {self.planned.reason}" if resumed else self.planned.reason
        if afresh:
            message += "; its progress was made by other code, so it starts afresh"
        work.begin()
        self.tell("running", message)
        if resumed or afresh:
            self._event("resume" if resumed else "afresh", message)
        with self._failures_explained(work.folder):
            metrics = plain_metrics(self.step.run(self._context(work, inputs)))
            self.tell("publishing")
            work.publish(self._manifest(metrics))

    def _context(self, work: Work, inputs: Mapping[str, Artifact]) -> StepContext:
        step = self.step
        return StepContext(
            config=step.config,
            inputs=inputs,
            content=work.staging / "content",
            observed=work.staging / "observed",
            progress=work.progress,
            step_name=step.name,
            stage=step.stage,
            numerics=step.numerics,
            report=self._report,
            log=self._log,
            event=self._event,
        )

    def _report(self, done: float, total: float, unit: str = "", note: str = "") -> None:
        rate, left = self.meter.read(done, total, unit)
        facts: dict[str, Any] = {"done": done, "total": total, "unit": unit, "note": note, "rate": rate}
        self.last = replace(self.last, **facts, seconds_left=left, seconds=self.meter.seconds)
        if time.monotonic() - self._written > _DISK_WRITES_SECONDS or done >= total:
            self._written = time.monotonic()
            self.runs.update_step(self.run, self.step.name, **facts)
        self.executor.on_progress(self.last)

    def _log(self, step: int, **values: float) -> None:
        self.runs.log(self.run, self.step.name, step, values)

    def _event(self, kind: str, message: str, **data: Any) -> None:
        self.runs.event(self.run, self.step.name, kind, message, data)

    def _manifest(self, metrics: Mapping[str, Any]) -> Manifest:
        step = self.step
        return Manifest(
            key=step.key,
            kind=step.kind,
            version=step.version,
            config=step.canonical_config,
            inputs=step.input_keys,
            numerics=vars(step.numerics) if step.numerics else None,
            step=step.name,
            stage=step.stage,
            code=step.code,
            environment=environment(),
            metrics=metrics,
            created=now(),
        )

    @contextmanager
    def _failures_explained(self, folder: Path) -> Iterator[None]:
        """Whatever a step raises becomes a StepFailed that names it; the trace goes to the run's events."""
        try:
            yield
        except Exception as error:
            what = _said(error, folder)
            self._failed(what, error)
            raise StepFailed(self.step.name, what) from error

    def _failed(self, what: str, error: Exception) -> None:
        # On a full disk the run database may be unable to record it; the user is told by the exception either way.
        with suppress(StoreError):
            self._event("failed", what, trace="".join(traceback.format_exception(error)))
            self.tell("failed", what)


def _said(error: BaseException, folder: Path) -> str:
    """What went wrong, for the user; a full disk is recognised wherever in the chain of causes it hides."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return explain(cause, folder)
        if "No space left on device" in str(cause):  # libraries outside Python's own, e.g. safetensors
            return explain(OSError(errno.ENOSPC, ""), folder)
        cause = cause.__cause__ or cause.__context__
    return str(error) if isinstance(error, StoreError) else f"{type(error).__name__}: {error}"


@contextmanager
def _alive(store: Store) -> Iterator[None]:
    """Hold a lock that tells other processes that this run lives, and mark the runs whose lock nobody holds."""
    path = store.locks / f"run-{os.getpid()}.lock"
    with hold(path, shared=True):
        for row in store.runs.runs():
            if row["status"] == "running":
                other = store.locks / f"run-{row['process']}.lock"
                with suppress(Busy), hold(other, wait=False):
                    store.runs.mark_killed(row["run"])
                    other.unlink()
        yield
    path.unlink(missing_ok=True)


def _check_names(steps: Sequence[Step]) -> None:
    names = [step.name for step in steps]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise StoreError(f"two steps of one run have the same name: {', '.join(twice)}. Give each its own")
