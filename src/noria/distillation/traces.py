"""A teacher's traces: one correct reply a task, with what the teacher thought of every token of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from noria.model import Transformer
from noria.posttraining import Example
from noria.types import seed_of


@torch.inference_mode()
def teacher_draws(
    teacher: Transformer, examples: Sequence[Example], draws: int, seed: int, rows: int = 32
) -> list[np.ndarray]:
    """For each example an array (T - 1, draws) of token ids drawn from the teacher's next-token distribution.

    Drawing with replacement, and weighing each draw 1/draws, gives an unbiased estimate of the cross-entropy to the
    teacher's full distribution with a dozen numbers a token instead of the vocabulary (arXiv 2503.16870).
    """
    generator = torch.Generator().manual_seed(seed_of("teacher draws", seed) % 2**31)
    found: list[np.ndarray] = []
    for start in range(0, len(examples), rows):
        chunk = examples[start : start + rows]
        longest = max(len(item.token_ids) for item in chunk)
        tokens_BT = torch.zeros(len(chunk), longest, dtype=torch.long)
        for row, item in enumerate(chunk):
            tokens_BT[row, : len(item.token_ids)] = torch.tensor(item.token_ids)
        probabilities_BTV = teacher(tokens_BT[:, :-1]).softmax(-1)
        for row, item in enumerate(chunk):
            chosen = probabilities_BTV[row, : len(item.token_ids) - 1]
            ids = torch.multinomial(chosen, draws, replacement=True, generator=generator)
            found.append(ids.numpy().astype(np.uint32))
    return found


def save_traces(folder: Path, examples: Sequence[Example], draws: Sequence[np.ndarray]) -> None:
    """traces.jsonl (token ids and which are trained on) and draws.npy (all examples' draws, one after another)."""
    lines = [json.dumps({"token_ids": item.token_ids, "trained": item.trained}) for item in examples]
    (folder / "traces.jsonl").write_text("".join(line + "\n" for line in lines))
    np.save(folder / "draws.npy", np.concatenate(list(draws)))


def load_traces(folder: Path) -> tuple[list[Example], list[np.ndarray]]:
    rows = [json.loads(line) for line in (folder / "traces.jsonl").read_text().splitlines()]
    examples = [Example(tuple(row["token_ids"]), tuple(row["trained"])) for row in rows]
    ends = np.cumsum([len(item.token_ids) - 1 for item in examples])
    return examples, np.split(np.load(folder / "draws.npy"), ends[:-1])
