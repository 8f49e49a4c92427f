"""The state of a half-done training run: written whole or not at all, refused when its bytes have changed."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash

NAME = "checkpoint.pt"


class CheckpointError(ValueError):
    """The checkpoint cannot be used; the message names the file and what to do."""


def save_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Replace the folder's checkpoint by `state` (tensors and plain values). Atomic: written, fsynced, renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    body = buffer.getvalue()
    header = json.dumps({"bytes": len(body), "xxh3": xxhash.xxh3_128_hexdigest(body)}).encode() + b"\n"
    unfinished = folder / f"{NAME}.new"
    with open(unfinished, "wb") as file:
        file.write(header)
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, folder / NAME)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The last state saved, None where there is none. Raises CheckpointError on a truncated or altered file."""
    path = folder / NAME
    if not path.exists():
        return None
    header, _, body = path.read_bytes().partition(b"\n")
    try:
        expected = json.loads(header)
        intact = len(body) == expected["bytes"] and xxhash.xxh3_128_hexdigest(body) == expected["xxh3"]
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise CheckpointError(f"{path} is truncated or altered; remove it to start this step from its beginning")
    return torch.load(io.BytesIO(body), weights_only=True)
