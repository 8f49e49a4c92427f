"""The worker of `vllm.py`, run by the interpreter of vLLM's environment; imports nothing of this project.

Reads orders as lines of JSON: {id, prompt_ids, sampling} or {id, abort}. Writes {"ready": true} once, then for every
request its new ids with their log-probabilities: {id, token_ids, logprobs, finish}, `finish` null until the last.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from typing import Any, TextIO


def main() -> None:
    # vLLM's log goes to stdout: the answers keep that pipe for themselves, and it gets stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from vllm import EngineArgs, LLMEngine

    engine = LLMEngine.from_engine_args(
        EngineArgs(
            **json.loads(sys.argv[1]),
            skip_tokenizer_init=True,
            generation_config="vllm",  # no sampling defaults of the folder
            logprobs_mode="processed_logprobs",  # of the distribution that was sampled from
            disable_log_stats=True,
        )
    )
    orders: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(orders,), daemon=True).start()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    while True:
        while not (orders.empty() and engine.has_unfinished_requests()):
            order = orders.get()
            if order is None:
                return
            _take(engine, order, answers)
        for output in engine.step():
            _answer(output, answers)


def _receive(orders: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    for line in sys.stdin:
        orders.put(json.loads(line))
    orders.put(None)


def _take(engine: Any, order: dict[str, Any], answers: TextIO) -> None:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    ended = {"id": order["id"], "token_ids": [], "logprobs": []}
    if order.get("abort"):
        engine.abort_request([order["id"]])
        print(json.dumps({**ended, "finish": "aborted"}), file=answers, flush=True)
        return
    settings = {"logprobs": 0, "ignore_eos": True, "detokenize": False, "output_kind": RequestOutputKind.DELTA}
    try:
        params = SamplingParams(**order["sampling"], **settings)
        engine.add_request(order["id"], {"prompt_token_ids": order["prompt_ids"]}, params)
    except ValueError as error:  # what vLLM refuses is told to the one who asked
        print(json.dumps({**ended, "finish": "error", "error": str(error)}), file=answers, flush=True)


def _answer(output: Any, answers: TextIO) -> None:
    (reply,) = output.outputs
    ids = list(reply.token_ids)
    logprobs = [found[token].logprob for token, found in zip(ids, reply.logprobs, strict=True)]
    line = {"id": output.request_id, "token_ids": ids, "logprobs": logprobs, "finish": reply.finish_reason}
    print(json.dumps(line), file=answers, flush=True)


if __name__ == "__main__":
    main()
