"""vLLM behind the engine's protocol: `generate` and `submit`, served by a worker in an environment of its own.

vLLM pins other versions of half of what we use, so it is never imported here: an interpreter of its environment runs
`vllm_worker.py` on a model folder as Hugging Face writes it (`noria.model.huggingface.export_folder` makes one), and
lines of JSON go over pipes: prompt ids and sampling parameters in, ids and log-probabilities out.

What it does not promise as `Engine` does: a reply may depend on what runs beside it, and a seed gives other draws.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

from noria.inference.engine import Handle, room_after
from noria.inference.request import Completion, Request

Dtype = Literal["float32", "bfloat16"]
WORKER = Path(__file__).parent / "vllm_worker.py"
CACHE_GB = 1
LEAVING_SECONDS = 30.0


class VllmFailed(RuntimeError):
    """The worker ended: what it wrote last is in the message."""


class _Remote(Handle):
    """A request that runs in the worker; to abort it the worker has to be told."""

    def __init__(self, request: Request, budget: int, on_abort: Callable[[], None]) -> None:
        super().__init__(request, budget)
        self._on_abort = on_abort

    def abort(self) -> None:
        super().abort()
        self._on_abort()


class VllmEngine:
    """vLLM on the weights in `folder`, run by `python`, the interpreter of an environment that has it. A context.

    `context` tokens hold a prompt and its reply; `max_rows` requests run at once in `precision`, on `threads` cores of
    those this process may use (a CPU build; elsewhere it is ignored). `end_id` ends a reply, -1 never does.
    The constructor waits for vLLM to start, which takes a minute. Raises VllmFailed where it does not, ValueError for a
    folder of ours and for another precision.
    """

    def __init__(
        self,
        folder: Path,
        end_id: int,
        python: str,
        *,
        context: int,
        max_rows: int = 256,
        precision: Dtype = "bfloat16",
        threads: int = 1,
        policy_version: int = 0,
    ) -> None:
        if precision not in get_args(Dtype):
            raise ValueError(f"precision {precision} is of our engine alone; with vLLM: {', '.join(get_args(Dtype))}")
        self.end_id, self.context, self.policy_version = end_id, context, policy_version
        self._vocabulary = _vocabulary(folder)
        self._log = tempfile.TemporaryFile("w+")  # closed with the worker
        self._numbers, self._lock = itertools.count(), threading.Lock()
        self._running: dict[str, Handle] = {}
        self._failure: VllmFailed | None = None
        settings = {"model": str(folder), "dtype": precision, "max_model_len": context, "max_num_seqs": max_rows}
        try:
            self._process = subprocess.Popen(
                [python, "-P", str(WORKER), json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                env=_environment(threads),
                start_new_session=True,  # its own children end with it
            )
        except OSError as error:
            self._log.close()
            raise VllmFailed(f"can't run {python}, which was named as the interpreter of vLLM: {error}") from error
        assert self._process.stdin is not None and self._process.stdout is not None
        self._orders, self._answers = self._process.stdin, self._process.stdout
        if not self._answers.readline():
            failure = self._failed()
            self.close()
            raise failure
        self._reader = threading.Thread(target=self._read, name="vllm answers", daemon=True)
        self._reader.start()

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the worker and all it started. Requests that still run fail."""
        try:
            self._orders.close()
            self._process.wait(LEAVING_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # nothing of it is left
        if hasattr(self, "_reader"):
            self._reader.join()
        self._answers.close()
        self._log.close()

    def submit(self, request: Request) -> Handle:
        """Queue a request. Raises as `Engine.submit` does, and VllmFailed where the worker has ended."""
        room = room_after(request.prompt_ids, self.context, self._vocabulary)
        number, params = str(next(self._numbers)), request.params
        budget = min(params.max_tokens, room)
        handle = _Remote(request, budget, lambda: self._send({"id": number, "abort": True}))
        stop_ids = [token for token in (self.end_id, *params.stop_ids) if token >= 0]
        sampling = {
            "max_tokens": budget,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "seed": params.seed % 2**63,
            "stop_token_ids": stop_ids,
        }
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._running[number] = handle
        self._send({"id": number, "prompt_ids": list(request.prompt_ids), "sampling": sampling})
        return handle

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Run `requests` to their ends."""
        return [handle.result() for handle in [self.submit(request) for request in requests]]

    def _send(self, order: dict[str, Any]) -> None:
        with self._lock:
            try:
                print(json.dumps(order), file=self._orders, flush=True)
            except (OSError, ValueError):  # the worker has ended; `_read` tells every request that waits
                return

    def _read(self) -> None:
        for line in self._answers:
            answer = json.loads(line)
            with self._lock:
                handle = self._running.get(answer["id"])
                if handle is not None and answer["finish"]:
                    del self._running[answer["id"]]
            if handle is None:
                continue
            for token, logprob in zip(answer["token_ids"], answer["logprobs"], strict=True):
                handle.push(token, logprob)
            if answer["finish"] == "error":
                handle.fail(VllmFailed(answer["error"]))
            elif answer["finish"]:
                handle.finish(answer["finish"], self.policy_version)
        failure = self._failed()
        with self._lock:
            self._failure, lost = failure, list(self._running.values())
            self._running.clear()
        for handle in lost:
            handle.fail(failure)

    def _failed(self) -> VllmFailed:
        self._log.seek(0)
        return VllmFailed(
            f"the vLLM worker ended; is vLLM in its environment? It wrote last:\n{self._log.read()[-2000:]}"
        )


def _vocabulary(folder: Path) -> int:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "vocab_size" not in config:
        raise ValueError(f"{folder} is not a model folder as Hugging Face writes it; make one with export_folder")
    return int(config["vocab_size"])


def _environment(threads: int) -> dict[str, str]:
    """Ours without what would lead the other interpreter to our modules (one of them is called vllm, too).

    vLLM binds threads to cores by itself; told a number of OpenMP threads as well, it would start more of them.
    """
    cores = sorted(os.sched_getaffinity(0))[:threads] if hasattr(os, "sched_getaffinity") else range(threads)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "OMP_"))}
    return kept | {
        "PYTHONSAFEPATH": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(CACHE_GB),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
    }
