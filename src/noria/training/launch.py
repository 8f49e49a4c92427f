"""Start the ranks of one job on this machine, hear what they tell, and start them again when one dies.

The ranks get the variables that torchrun sets, so on several machines torchrun can take this file's place. A rank
speaks in JSON lines on its standard output: {"kind": "step", "step": ...}, {"kind": "error", "message": ...} or an
event of the guard. All else that it prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from noria.training.guard import Cause, Event

BAD_USE, FAULT = 2, 3  # exit codes: starting again can't help; a worker is at fault (see guard.WorkerFault)
POLL_SECONDS = 0.05


class LaunchError(RuntimeError):
    """The job can't go on: a rank said why in words, or ranks died too often."""


def launch(
    command: Sequence[str],
    processes: int,
    hear: Callable[[Mapping[str, Any]], None],
    restarts: int = 3,
    least_processes: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[Event]:
    """Run `processes` ranks of `command` to their end; `hear` gets each line that the first rank tells.

    When a rank dies, the others are ended and all start again from the last checkpoint, with one rank fewer each time
    if `least_processes` allows it. Returns an event a death. Raises LaunchError.
    """
    deaths: list[Event] = []
    while True:
        outcome = _run_once(command, processes, hear, environment or {})
        if outcome is None:
            return deaths
        deaths.append(outcome)
        if outcome.cause == "data or optimiser":
            raise LaunchError(outcome.message)
        if len(deaths) > restarts:
            raise LaunchError(
                f"{outcome.message}; it is death number {len(deaths)}, and {restarts} restarts are allowed"
            )
        hear(outcome.to_json())
        if least_processes is not None:
            processes = max(least_processes, processes - 1)


class _Ranks:
    """The running processes of one attempt, and what each told last."""

    def __init__(
        self, command: Sequence[str], count: int, hear: Callable[[Mapping[str, Any]], None], extra: Mapping[str, str]
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), **extra}
        self.steps: dict[int, int] = {}
        self.errors: dict[int, str] = {}
        self._hear = hear
        self.processes = [
            subprocess.Popen(
                command,
                env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(count)
        ]
        self._readers = [threading.Thread(target=self._read, args=(rank,), daemon=True) for rank in range(count)]
        for reader in self._readers:
            reader.start()

    def _read(self, rank: int) -> None:
        stream = self.processes[rank].stdout
        assert stream is not None
        for line in stream:
            try:
                told = json.loads(line)
            except ValueError:
                told = None
            if not isinstance(told, dict) or "kind" not in told:
                sys.stderr.write(line)
                continue
            if told["kind"] == "error":
                self.errors[rank] = told["message"]
            if told["kind"] == "step":
                self.steps[rank] = told["step"]
            if rank == 0:
                self._hear(told)

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        for reader in self._readers:
            reader.join()


def _run_once(
    command: Sequence[str], count: int, hear: Callable[[Mapping[str, Any]], None], extra: Mapping[str, str]
) -> Event | None:
    """None when every rank ended well, otherwise the event of the first death."""
    ranks = _Ranks(command, count, hear, extra)
    try:
        while True:
            codes = [process.poll() for process in ranks.processes]
            failed = {rank: code for rank, code in enumerate(codes) if code}
            if failed or all(code == 0 for code in codes):
                break
            time.sleep(POLL_SECONDS)
    finally:
        ranks.end()
    if not failed:
        return None
    # A rank ended by a signal takes the others' connections down; where both are seen, the signal was first.
    rank, code = min(failed.items(), key=lambda item: (item[1] >= 0, item[1] not in (BAD_USE, FAULT)))
    step = max(ranks.steps.values(), default=-1) + 1
    said = ranks.errors.get(rank, "")
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    message = f"rank {rank} of {count} {how} in step {step}" + (f": {said}" if said else "")
    cause: Cause = "data or optimiser" if code == BAD_USE else "hardware" if code == FAULT or code < 0 else "not known"
    return Event("worker_died", step, cause, message, {"ranks": (rank,), "exit_code": code, "processes": count})
