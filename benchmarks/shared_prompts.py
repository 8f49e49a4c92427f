"""What it saves to compute a prompt once for the replies to it: a training pass with and without, same batch.

    python -m benchmarks.shared_prompts [--threads 1] [--repetitions 5] [--json] [--quick]

A model of SmolLM2-135M's shape with random weights, two groups of 8 replies of random ids, fp32; forward and backward
pass of the policy loss. The peer is the same code with every row computed on its own. The clock is processor time.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from unittest import mock

import torch

from benchmarks.report import Row, paired_row, show
from noria.model import ModelConfig, Transformer
from noria.training import Objective, TokenBatch, shared_prompts
from noria.training.step import measure_gradient

SHAPE = ModelConfig(
    vocab_size=49152, width=576, layers=30, heads=9, kv_heads=3, ffn_width=1536, context=1024,
    activation="swiglu", qk_norm=False,
)  # fmt: skip
LENGTHS = ((114, 6), (70, 10), (40, 32), (64, 128))  # tokens of a prompt and of a reply
GROUPS, SAMPLES = 2, 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="the first lengths alone, two rounds")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = Transformer(SHAPE)
    repetitions = 2 if options.quick else options.repetitions
    rows = [compared(model, prompt, reply, repetitions) for prompt, reply in LENGTHS[: 1 if options.quick else None]]
    show("shared_prompts", rows, as_json=options.json, quick=options.quick, threads=options.threads)
    return 0


def compared(model: Transformer, prompt: int, reply: int, repetitions: int) -> Row:
    batch = batch_of(prompt, reply)
    seconds(model, batch)  # warms up
    together, alone = [], []
    for _ in range(repetitions):
        together.append(seconds(model, batch))
        with mock.patch.object(shared_prompts, "shared_states", lambda *_: None):
            alone.append(seconds(model, batch))
    case = f"{GROUPS} x {SAMPLES} replies of {reply} tokens to prompts of {prompt}"
    return paired_row(case, "rows on their own", together, alone, "CPU seconds a pass", lower_is_better=True)


def seconds(model: Transformer, batch: TokenBatch) -> float:
    started = time.process_time()
    measure_gradient(model, batch, GROUPS * SAMPLES, Objective())
    return time.process_time() - started


def batch_of(prompt: int, reply: int) -> TokenBatch:
    g = torch.Generator().manual_seed(0)
    prompts = torch.randint(SHAPE.vocab_size, (GROUPS, prompt), generator=g).repeat_interleave(SAMPLES, 0)
    replies = torch.randint(SHAPE.vocab_size, (GROUPS * SAMPLES, reply), generator=g)
    tokens_BT = torch.cat([prompts, replies], 1)
    w_rl = torch.zeros(len(tokens_BT), tokens_BT.shape[1] - 1)
    w_rl[:, prompt - 1 :] = 1.0
    behaviour, advantage = torch.full_like(w_rl, -10.0), torch.randn(w_rl.shape, generator=g)
    return TokenBatch(
        tokens_BT, torch.zeros_like(w_rl), w_rl=w_rl, behaviour_logprob=behaviour, advantage=advantage * w_rl
    )


if __name__ == "__main__":
    sys.exit(main())
