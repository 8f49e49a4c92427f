"""TRL's side of `benchmarks/grpo_step.py`, run by the Python of the peer's environment: GRPOTrainer on a folder.

Imports nothing of this project. Prints a line of JSON a step: its seconds, the mean reward of its samples, and the most
memory that the process held so far.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def reward(text: str) -> float:
    """The share of a reply's letters that are an e: dense, cheap, and the same on both sides."""
    letters = [letter for letter in text.lower() if letter.isalpha()]
    return letters.count("e") / len(letters) if letters else 0.0


def clock() -> Callable[[], float]:
    """Processor time for one thread, which a neighbour on the machine does not lengthen; otherwise wall time."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def peak_bytes() -> int:
    """The most resident memory of this process so far."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    task: dict[str, Any] = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    def rewards(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
        found = [reward(completion[0]["content"]) for completion in completions]
        heard.append(sum(found) / len(found))
        return found

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = tick()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            row = {"seconds": tick() - self.started, "reward": heard[-1], "peak_bytes": peak_bytes()}
            print(json.dumps(row), flush=True)

    heard: list[float] = []
    tick = clock()
    samples = task["prompts"] * task["group"]
    with tempfile.TemporaryDirectory(prefix="noria-trl-") as folder:
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=task["variant"] == "autocast",
            model_init_kwargs={"dtype": "bfloat16" if task["variant"] == "bf16 weights" else "float32"},
            gradient_checkpointing=False,
            torch_compile=task["compile"],
            per_device_train_batch_size=task["rows"],
            gradient_accumulation_steps=samples // task["rows"],
            num_generations=task["group"],
            max_completion_length=task["max_tokens"],
            generation_kwargs={"min_new_tokens": task["min_tokens"]},
            max_steps=task["steps"],
            learning_rate=task["learning_rate"],
            lr_scheduler_type="constant",
            adam_beta2=0.95,
            beta=0.0,
            epsilon_high=0.28,
            loss_type="dapo",
            scale_rewards="none",
            shuffle_dataset=False,
            seed=task["seed"],
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        prompts = [{"prompt": [{"role": "user", "content": text}]} for text in task["texts"]]
        trainer = GRPOTrainer(
            task["folder"],
            reward_funcs=rewards,
            args=config,
            train_dataset=Dataset.from_list(prompts * (1 + task["steps"] * task["prompts"] // len(prompts))),
            callbacks=[Clock()],
        )
        print(json.dumps({"name": f"trl {importlib.metadata.version('trl')}"}), flush=True)
        trainer.train()


if __name__ == "__main__":
    main()
