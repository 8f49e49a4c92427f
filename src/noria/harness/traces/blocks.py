"""A block: some traces packed together, each of their messages, tasks and runs of tokens in it once.

Inside, zlib over a JSON header (the graphs, with numbers in the place of messages and tasks) and three arrays: the pool
of tokens, the runs that prompts and samples consist of (`tokens.py`), the log-probabilities. A block needs no other
block, so that a damaged one costs nothing but itself.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from typing import Any, TypeVar

import numpy as np

from noria.harness.traces.entry import Entry, score_from, to_bytes
from noria.harness.traces.tokens import TokenPool, sequence_of
from noria.types import Message, ModelCall, Node, Task, ToolUse, Trace, call_from, task_from_json

T = TypeVar("T", bound=Hashable)
ARRAYS = ("pool", "runs", "logprobs")


def pack(entries: Sequence[Entry]) -> bytes:
    """`unpack` gives equal entries back: token ids exactly, log-probabilities to the last bit."""
    packer = _Packer()
    traces = [packer.entry(entry) for entry in entries]
    arrays = {
        "pool": _smallest_unsigned(packer.pool.tokens),
        "runs": _smallest_unsigned(packer.runs),
        "logprobs": _smallest_float(packer.logprobs),
    }
    header = to_bytes(
        {
            "messages": [vars(message) for message in packer.messages],
            "tasks": packer.tasks,
            "traces": traces,
            "arrays": {name: [array.dtype.str, len(array)] for name, array in arrays.items()},
        }
    )
    raw = b"".join([len(header).to_bytes(4, "little"), header, *(array.tobytes() for array in arrays.values())])
    return zlib.compress(raw, 6)


def unpack(packed: bytes) -> list[Entry]:
    """What was packed. Raises ValueError, KeyError, TypeError or zlib.error for bytes that are no block."""
    raw = zlib.decompress(packed)
    end = 4 + int.from_bytes(raw[:4], "little")
    header = json.loads(raw[4:end])
    arrays: dict[str, list[Any]] = {}
    for name in ARRAYS:
        dtype, count = header["arrays"][name]
        arrays[name] = np.frombuffer(raw, dtype, count, end).tolist()
        end += count * np.dtype(dtype).itemsize
    return _Unpacker(header, arrays).entries()


class _Packer:
    def __init__(self) -> None:
        self.pool = TokenPool()
        self.runs: list[int] = []
        self.logprobs: list[float] = []
        self.messages: dict[Message, int] = {}
        self.tasks: list[Any] = []
        self._task_numbers: dict[bytes, int] = {}
        self._known: dict[int, int] = {}  # by identity; the entries outlive the packer

    def entry(self, entry: Entry) -> dict[str, Any]:
        starts = [len(self.runs), len(self.logprobs)]
        trace = _changed_fields(entry.trace, without=("nodes",))
        return {
            "trace": trace,
            "nodes": [self._node(node) for node in entry.trace.nodes],
            "task": None if entry.task is None else self._task(entry.task),
            "score": None if entry.score is None else asdict(entry.score),
            "labels": dict(entry.labels),
            "starts": starts,
        }

    def _node(self, node: Node) -> dict[str, Any]:
        packed = _changed_fields(node, without=("message", "call", "use"))
        packed["message"] = _number(self.messages, node.message)
        if node.use is not None:
            packed["use"] = _changed_fields(node.use)
        if node.call is not None:
            packed["call"] = self._call(node.call)
        return packed

    def _call(self, call: ModelCall) -> dict[str, Any]:
        for ids in (call.prompt_ids, call.token_ids):
            runs = self.pool.add(ids)
            self.runs += [len(runs), *(number for run in runs for number in run)]
        self.logprobs += call.logprobs
        rest = _changed_fields(call, without=("prompt_ids", "token_ids", "logprobs", "endpoint"))
        if call.endpoint is not None:
            rest["endpoint"] = asdict(call.endpoint)
        return {**rest, "logprobs": len(call.logprobs)}

    def _task(self, task: Task) -> int:
        if id(task) not in self._known:  # the rollouts of a group share the object
            value = asdict(task)
            number = self._task_numbers.setdefault(to_bytes(value), len(self.tasks))
            if number == len(self.tasks):
                self.tasks.append(value)
            self._known[id(task)] = number
        return self._known[id(task)]


class _Unpacker:
    def __init__(self, header: Mapping[str, Any], arrays: Mapping[str, list[Any]]) -> None:
        self.header, self.arrays = header, arrays
        self.messages = [Message(**message) for message in header["messages"]]
        self.tasks = [task_from_json(json.dumps(task)) for task in header["tasks"]]
        self.run, self.logprob = 0, 0  # where the next of each stands

    def entries(self) -> list[Entry]:
        return [self._entry(packed) for packed in self.header["traces"]]

    def _entry(self, packed: dict[str, Any]) -> Entry:
        self.run, self.logprob = packed["starts"]
        trace = Trace(nodes=tuple(self._node(node) for node in packed["nodes"]), **packed["trace"])
        task = None if packed["task"] is None else self.tasks[packed["task"]]
        score = None if packed["score"] is None else score_from(packed["score"])
        return Entry(trace, task, score, packed["labels"])

    def _node(self, packed: dict[str, Any]) -> Node:
        use = ToolUse(**packed.pop("use")) if "use" in packed else None
        call = self._call(packed.pop("call")) if "call" in packed else None
        message, parents = self.messages[packed.pop("message")], tuple(packed.pop("parents"))
        return Node(parents, message, call=call, use=use, **packed)

    def _call(self, packed: dict[str, Any]) -> ModelCall:
        count = packed.pop("logprobs")
        logprobs = tuple(self.arrays["logprobs"][self.logprob : self.logprob + count])
        self.logprob += count
        ids = {"prompt_ids": self._sequence(), "token_ids": self._sequence()}
        return call_from({**packed, **ids, "logprobs": logprobs})

    def _sequence(self) -> tuple[int, ...]:
        runs, first = self.arrays["runs"], self.run + 1
        self.run = first + 2 * runs[self.run]
        flat = runs[first : self.run]
        return sequence_of(self.arrays["pool"], list(zip(flat[::2], flat[1::2], strict=True)))


def _changed_fields(value: Any, without: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a dataclass that are not at their default."""
    changed = {}
    for item in fields(value):
        default = item.default if item.default_factory is MISSING else item.default_factory()
        if item.name not in without and (found := getattr(value, item.name)) != default:
            changed[item.name] = found
    return changed


def _number(numbers: dict[T, int], value: T) -> int:
    return numbers.setdefault(value, len(numbers))


def _smallest_unsigned(values: Sequence[int]) -> np.ndarray:
    wide = np.array(values, dtype="<i8")
    if len(wide) and wide.min() < 0:
        raise ValueError("a token id is negative")
    fitting = next((kind for kind in ("<u1", "<u2", "<u4") if not len(wide) or wide.max() <= np.iinfo(kind).max), "<i8")
    return wide.astype(fitting)


def _smallest_float(values: Sequence[float]) -> np.ndarray:
    """Single precision where that loses nothing: what an engine sampled in single precision was one."""
    wide = np.array(values, dtype="<f8")
    with np.errstate(over="ignore"):
        narrow = wide.astype("<f4")
    return narrow if np.array_equal(narrow.astype("<f8"), wide, equal_nan=True) else wide
