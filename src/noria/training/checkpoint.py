"""Checkpoints: sharded, written in the background, whole or not at all, refused when a byte has changed.

A checkpoint is a folder `step-00000120`: the tensors in PyTorch's distributed format (each rank writes what it holds,
any number of ranks reads it), `progress.json` (plain values) and, written last, `manifest.json` with the size and hash
of every file. It is written under another name and renamed, so a folder of this name is complete. Several ranks need
one file system.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
import xxhash
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from noria.training.parallel import ALONE, Ranks

PREFIX, UNFINISHED = "step-", ".new"
PROGRESS, MANIFEST = "progress.json", "manifest.json"

Held = tuple[tuple[int, ...], torch.dtype]  # of a tensor: what a checkpoint tells of it

# A process alone is meant to be alone, and is told so at each save and load, from a thread of its own.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")


class CheckpointError(ValueError):
    """The checkpoint cannot be used or written; the message names the file and what to do."""


class Saver:
    """Writes checkpoints of one run, one at a time. `save` copies the tensors and returns; the rest goes on behind it.

    Retention: the newest `keep_last`, every one at a multiple of `keep_every`, and the last two at a multiple of
    `anchor_every`, which a rollback can return to.
    """

    def __init__(
        self, root: Path, ranks: Ranks = ALONE, keep_last: int = 2, keep_every: int = 0, anchor_every: int = 0
    ) -> None:
        self.root, self.ranks = root, ranks
        self._kept = (keep_last, keep_every, anchor_every)
        self._future: Future | None = None
        self._published: Future | None = None
        if ranks.is_first:
            root.mkdir(parents=True, exist_ok=True)
            for left in root.glob(f"{PREFIX}*{UNFINISHED}"):
                shutil.rmtree(left)
        ranks.barrier()

    @property
    def is_busy(self) -> bool:
        return self._future is not None and not (self._future.done() and self._published_or_elsewhere())

    def save(self, step: int, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Start writing the state after `step` steps, once the one before is written. Raises CheckpointError."""
        self.finish()
        folder = self.root / f"{PREFIX}{step:08d}{UNFINISHED}"
        if self.ranks.is_first:
            shutil.rmtree(folder, ignore_errors=True)
        self.ranks.barrier()
        alone = self.ranks.count == 1
        started = dcp.async_save(dict(tensors), checkpoint_id=folder, process_group=self.ranks.saving, no_dist=alone)
        assert isinstance(started, Future)
        self._future = started
        if self.ranks.is_first:
            self._published = Future()
            published = self._published
            started.add_done_callback(lambda written: self._publish(written, published, folder, dict(progress)))

    def finish(self) -> None:
        """Wait for the checkpoint being written. Raises CheckpointError if it failed; earlier ones are untouched."""
        future, self._future = self._future, None
        published, self._published = self._published, None
        if future is None:
            return
        try:
            (published or future).result()
        except (OSError, RuntimeError, CheckpointException) as error:
            raise CheckpointError(self._explain(error)) from error
        self.ranks.barrier()

    def discard_after(self, step: int) -> None:
        """Remove the checkpoints of more than `step` steps: they belong to a line that is given up."""
        self.finish()
        if self.ranks.is_first:
            for folder in complete(self.root):
                if steps_of(folder) > step:
                    shutil.rmtree(folder)
        self.ranks.barrier()

    def _published_or_elsewhere(self) -> bool:
        return self._published is None or self._published.done()

    def _publish(self, written: Future, published: Future, folder: Path, progress: dict[str, Any]) -> None:
        """On the first rank, in the background: all ranks have written, so describe the files, rename, clear up."""
        try:
            written.result()
            _write(folder / PROGRESS, json.dumps(progress))
            files = {path.name: _describe(path) for path in sorted(folder.iterdir())}
            _write(folder / MANIFEST, json.dumps({"schema": 1, "files": files}, indent=1))
            final = folder.with_name(folder.name.removesuffix(UNFINISHED))
            shutil.rmtree(final, ignore_errors=True)
            os.replace(folder, final)
            _sync_folder(self.root)
            steps = [steps_of(path) for path in complete(self.root)]
            for step in sorted(set(steps) - retained(steps, *self._kept)):
                shutil.rmtree(self.root / f"{PREFIX}{step:08d}")
        except BaseException as error:  # noqa: BLE001  handed over whole to whoever waits
            shutil.rmtree(folder, ignore_errors=True)
            published.set_exception(error)
        else:
            published.set_result(None)

    def _explain(self, error: BaseException) -> str:
        good = complete(self.root)
        last = f"the last good checkpoint, {good[-1]}, is intact" if good else "there was no earlier one"
        text = "".join(str(part) for part in _chain(error))
        if "No space left" in text:
            return (
                f"the disk of {self.root} is full, so a checkpoint was not written; {last}. Free space, then run again"
            )
        return f"a checkpoint in {self.root} was not written ({text.strip()[:500]}); {last}"


def retained(steps: Sequence[int], keep_last: int, keep_every: int, anchor_every: int) -> set[int]:
    """Which of the checkpoints at `steps` are kept."""
    ordered = sorted(steps)
    anchors = [step for step in ordered if anchor_every and step % anchor_every == 0]
    periodic = {step for step in ordered if keep_every and step % keep_every == 0}
    return {*ordered[-max(1, keep_last) :], *anchors[-2:], *periodic}


def complete(root: Path) -> list[Path]:
    """The folders of complete checkpoints, oldest first."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.glob(f"{PREFIX}*") if not path.name.endswith(UNFINISHED))


def steps_of(folder: Path) -> int:
    """After how many steps a checkpoint was taken."""
    return int(folder.name.removeprefix(PREFIX))


def verify(folder: Path) -> None:
    """Raises CheckpointError naming the first file that is missing, truncated or altered."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(_damaged(folder, MANIFEST)) from error
    for name, expected in files:
        path = folder / name
        if not path.is_file() or _describe(path) != expected:
            raise CheckpointError(_damaged(folder, name))


def read_progress(folder: Path) -> dict[str, Any]:
    """The plain values saved beside the tensors."""
    try:
        return json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(_damaged(folder, PROGRESS)) from error


def load_tensors(folder: Path, tensors: Mapping[str, Tensor], ranks: Ranks = ALONE) -> None:
    """Read a checkpoint into `tensors`, in place: whole or sharded, whatever number of ranks wrote it.

    No second copy of the state is made; a rank reads its own part. Raises CheckpointError where names, shapes or
    precisions differ.
    """
    _refuse_misfit(folder, tensors)
    _read(folder, tensors, ranks)


def average(folders: Sequence[Path], prefix: str = "model.") -> dict[str, Tensor]:
    """The mean of the tensors whose name starts with `prefix` over several checkpoints, without that prefix, in fp32.

    Late checkpoints of a constant-rate run averaged come close to what a decay would give (LAWA, arXiv 2306.03241).
    Holds two copies: the running mean and one checkpoint.
    """
    if not folders:
        raise ValueError("there are no checkpoints to average")
    mean: dict[str, Tensor] = {}
    for count, folder in enumerate(folders, start=1):
        verify(folder)
        tensors = {name: torch.empty(size) for name, (size, _) in _held(folder).items() if name.startswith(prefix)}
        _read(folder, tensors, ALONE)
        for name, tensor in tensors.items():
            short = name.removeprefix(prefix)
            mean[short] = tensor if count == 1 else mean[short].lerp_(tensor, 1.0 / count)
    return mean


def _read(folder: Path, tensors: Mapping[str, Tensor], ranks: Ranks) -> None:
    dcp.load(dict(tensors), checkpoint_id=folder, process_group=ranks.saving, no_dist=ranks.count == 1)


def _refuse_misfit(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    found = _held(folder)
    wanted = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if found.get(name) != wanted.get(name):
            raise CheckpointError(
                f"{folder} is of another run: it holds {name} as {_said(found.get(name))}, and this run has it as "
                f"{_said(wanted.get(name))}; remove it to start from the beginning"
            )


def _held(folder: Path) -> dict[str, Held]:
    entries = FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = {name: entry for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}
    return {name: (tuple(entry.size), entry.properties.dtype) for name, entry in tensors.items()}


def _said(held: Held | None) -> str:
    return f"{held[0]} in {str(held[1]).removeprefix('torch.')}" if held else "nothing"


def _describe(path: Path) -> dict[str, Any]:
    hasher, size = xxhash.xxh3_128(), 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
            size += len(chunk)
    return {"bytes": size, "xxh3_128": hasher.hexdigest()}


def _damaged(folder: Path, name: str) -> str:
    others = [path.name for path in complete(folder.parent) if path != folder]
    rest = f"to continue from {others[-1]}" if others else "to start from the beginning"
    return f"{folder / name} is missing, truncated or altered; remove the folder {folder.name} {rest}"


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _chain(error: BaseException) -> list[BaseException]:
    """An error, what ranks reported inside it, and what it came from."""
    inner = [value[0] for value in error.failures.values()] if isinstance(error, CheckpointException) else []
    cause = error.__cause__ or error.__context__
    return [error, *inner, *(_chain(cause) if cause else [])]
