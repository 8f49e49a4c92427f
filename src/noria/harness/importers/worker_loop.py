"""The loop of a worker: `PYTHON worker_loop.py WORKER.py SETTINGS`, in a peer's environment; needs nothing of ours.

WORKER.py defines make(settings), which gives the operations by name. Reads questions as lines of JSON, {"op": name,
...}; answers each with one line: {"answer": value}, or {"missing": package}, {"refused": why} for the user, {"error":
what} for a failure.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

REFUSED = "refused: "  # a ValueError that begins so is for the user


def answer_all(worker: str, settings: dict[str, Any]) -> None:
    """Answers until stdin ends. What loading the worker or its `make` raises then answers every question."""
    answers = os.fdopen(os.dup(1), "w")  # what libraries print goes to stderr
    os.dup2(2, 1)
    operations: Mapping[str, Callable[..., Any]] = {}
    failure: dict[str, str] | None = None
    try:
        # By path: its folder holds files named like the packages that it imports.
        spec = importlib.util.spec_from_file_location("peer_worker", worker)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        operations = module.make(settings)
    except BaseException as error:  # noqa: BLE001 - whatever it is, whoever asks is told
        failure = _told(error)
    for line in sys.stdin:
        question = json.loads(line)
        told: dict[str, Any]
        if failure is not None:
            told = failure
        else:
            try:
                told = {"answer": operations[question.pop("op")](**question)}
            except BaseException as error:  # noqa: BLE001 - as above
                told = _told(error)
        print(json.dumps(told, default=str), file=answers, flush=True)


def _told(error: BaseException) -> dict[str, str]:
    if isinstance(error, ValueError) and str(error).startswith(REFUSED):
        return {"refused": str(error).removeprefix(REFUSED)}
    if isinstance(error, ImportError):
        return {"missing": str(error)}
    traceback.print_exception(error)
    return {"error": f"{type(error).__name__}: {error}"[:1000]}


if __name__ == "__main__":
    answer_all(sys.argv[1], json.loads(sys.argv[2]))
