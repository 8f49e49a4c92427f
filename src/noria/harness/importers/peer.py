"""A peer's library in an environment of its own, asked over lines of JSON.

verifiers and Inspect pin other versions of half of what we use, so they are never imported here: an interpreter of
their environment runs a worker of ours that imports nothing of this project.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from noria.harness.importers.imported import ImportRefused

LOOP = Path(__file__).with_name("worker_loop.py")
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "USER")  # no keys of ours for code of others
KEPT_FAMILIES = ("HF_HOME", "HF_HUB_", "HF_DATASETS_", "INSPECT_EVALS_", "XDG_CACHE_")  # where data sets are kept


class PeerFailed(RuntimeError):
    """The worker could not do what it was asked, or ended; the message says what it said."""


class Peer:
    """A worker that answers one question at a time. A context manager.

    `python` is the interpreter of an environment that has the package. `timeout_seconds` bounds each answer.
    """

    def __init__(self, python: str, worker: Path, package: str, settings: Mapping[str, Any], timeout_seconds: float):
        self._timeout_seconds, self._package, self._python = timeout_seconds, package, python
        self._log = tempfile.TemporaryFile("w+")
        self._lock = threading.Lock()
        kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith(KEPT_FAMILIES)}
        try:
            self._process = subprocess.Popen(
                [python, "-P", str(LOOP), str(worker), json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                env={**kept, "PYTHONSAFEPATH": "1"},
            )
        except OSError as error:
            self._log.close()
            raise ImportRefused(
                f"can't run {python}, which was named as the interpreter of {package}: {error}"
            ) from error
        assert self._process.stdin is not None and self._process.stdout is not None
        self._orders = self._process.stdin
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join(5)
        for stream in (self._orders, self._process.stdout, self._log):
            if stream is not None and not stream.closed:
                stream.close()

    def ask(self, **question: Any) -> Any:
        """The worker's answer. Raises PeerFailed; ImportRefused where the package is not there or has no such task."""
        with self._lock:
            try:
                print(json.dumps(question), file=self._orders, flush=True)
                answer = self._answers.get(timeout=self._timeout_seconds)
            except (OSError, ValueError):
                answer = None
            except queue.Empty:
                self._process.kill()
                raise PeerFailed(f"the {self._package} worker gave no answer in {self._timeout_seconds:g} s") from None
        if answer is None:
            raise PeerFailed(f"the {self._package} worker ended; it wrote last:\n{self._last_words()}")
        told = json.loads(answer)
        if "missing" in told:
            raise ImportRefused(
                f"{self._python} can't import {self._package}, or what the task needs: {told['missing']}. Make an "
                f"environment (python -m venv peer; peer/bin/pip install {self._package} and the task's own package) "
                "and name its peer/bin/python"
            )
        if "refused" in told:
            raise ImportRefused(told["refused"])
        if "error" in told:
            raise PeerFailed(told["error"])
        return told["answer"]

    def _read(self, stream: Any) -> None:
        for line in stream:
            self._answers.put(line)
        self._answers.put(None)

    def _last_words(self) -> str:
        self._log.seek(0)
        return self._log.read()[-1500:]
