"""A peer of `benchmarks/pretrain.py`, run by the Python of the peers' environment: one model, one compiled bf16 loop.

Imports nothing of this project. Speaks lines of JSON: its name when it is warm, then an answer to each order.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Loss = Callable[[Tensor], Tensor]


def turns(name: str, warmup: int) -> Iterator[None]:
    """Yields when a step is to be taken, and answers with its seconds when the next one is asked for."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for _ in range(warmup):
        yield
    reset_peak()
    print(json.dumps({"name": name}), flush=True)
    for order in sys.stdin:
        if order.strip() == "peak":
            print(json.dumps({"bytes": peak_bytes()}), flush=True)
            continue
        started = clock()
        yield
        print(json.dumps({"seconds": clock() - started}), flush=True)


def reset_peak() -> None:
    """From here on the peak of resident memory counts (Linux: proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def transformers_llama(case: dict[str, Any]) -> tuple[torch.nn.Module, Loss]:
    """`LlamaForCausalLM` with its own loss, SDPA; model and loss compiled as one."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=case["vocab_size"],
        hidden_size=case["width"],
        num_hidden_layers=case["layers"],
        num_attention_heads=case["heads"],
        num_key_value_heads=case["kv_heads"],
        intermediate_size=case["ffn_width"],
        max_position_embeddings=case["length"],
        tie_word_embeddings=True,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = transformers.LlamaForCausalLM(config)
    compiled = torch.compile(model)
    # Given labels are shifted inside, so the last position has none; a row has one token more than targets elsewhere.
    return model, lambda tokens_BT: compiled(input_ids=tokens_BT[:, :-1], labels=tokens_BT[:, :-1]).loss


def litgpt_gpt(case: dict[str, Any]) -> tuple[torch.nn.Module, Loss]:
    """`litgpt.GPT` with the chunked loss that its pretraining uses; the model compiled, as there."""
    from litgpt.model import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    config = Config(
        name="benchmark",
        block_size=case["length"],
        vocab_size=case["vocab_size"],
        padded_vocab_size=case["vocab_size"],
        n_layer=case["layers"],
        n_head=case["heads"],
        n_query_groups=case["kv_heads"],
        n_embd=case["width"],
        intermediate_size=case["ffn_width"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )
    model = GPT(config)
    model.lm_head.weight = model.transformer.wte.weight
    compiled = torch.compile(model)
    return model, lambda tokens_BT: chunked_cross_entropy(compiled(tokens_BT[:, :-1]), tokens_BT[:, 1:])


def main() -> None:
    task = json.loads(sys.argv[1])
    case = task["case"]
    torch.set_num_threads(task["threads"])
    torch.manual_seed(0)
    model, loss = {"transformers": transformers_llama, "litgpt": litgpt_gpt}[task["kind"]](case)
    mixed = task["variant"] == "autocast"
    if not mixed:
        model.to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens_BT = torch.randint(0, case["vocab_size"], (case["rows"], case["length"] + 1))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            value = loss(tokens_BT)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value.item()

    for _ in turns(f"{task['kind']} {importlib.metadata.version(task['kind'])}", task["warmup"]):
        step()


if __name__ == "__main__":
    main()
