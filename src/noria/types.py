"""The nouns that flow through every stage: Document, Task, Trace, Score (TokenBatch lives in training/batch.py).

All are frozen values. In bulk a Document is a row of an Arrow table with `data.documents.DOCUMENT_SCHEMA`, never a
Python object per row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"

Role = Literal["system", "user", "assistant", "tool"]


def digest(*parts: str | bytes) -> str:
    """A 32-hex-digit identity of `parts`; lengths are hashed too, so ("ab", "c") differs from ("a", "bc")."""
    hasher = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        hasher.update(len(raw).to_bytes(8, "little"))
        hasher.update(raw)
    return hasher.hexdigest()[:32]


def seed_of(*parts: Any) -> int:
    """A 63-bit seed that is a pure function of `parts`, e.g. seed_of(run_seed, task_id, rollout, turn)."""
    return int(digest(*(str(part) for part in parts))[:16], 16) >> 1


@dataclass(frozen=True)
class Origin:
    """Where a document's raw bytes lie: a file of the raw-data artifact, its record's offset and length in bytes.

    For a gzip member (WARC) the offset and length are those of the compressed record.
    """

    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class Document:
    """One text with its provenance. `id` = digest(source, raw bytes); `content_hash` = digest of the text as it is."""

    id: str
    content_hash: str
    text: str
    source: str
    licence: str
    language: str
    origin: Origin
    signals: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Message:
    """One chat message. An assistant's content may open with <think>...</think>; see `split_thinking`."""

    role: Role
    content: str


@dataclass(frozen=True)
class GraderRef:
    """Which grader judges a task: its name and the hash of its code, data and model."""

    name: str
    version: str


@dataclass(frozen=True)
class Task:
    """A prompt with what only its grader may see. Benchmarks, RL prompts and agent tasks are all Tasks.

    `hidden` holds JSON values (unit tests, files of an environment, the gold path). `domain` groups families:
    maths, code, logic, agent, helpful, safety. `difficulty` is in [0, 1].
    """

    id: str
    messages: tuple[Message, ...]
    grader: GraderRef
    answer: str
    family: str
    domain: str
    difficulty: float = 0.0
    hidden: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EndpointReply:
    """What a chat endpoint said of a reply whose token ids it keeps to itself: tokens as it counted them (both 0 where
    it does not tell), and the reply's calls, each (tool, arguments as JSON text)."""

    model: str
    prompt_tokens: int
    sampled_tokens: int
    calls: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ModelCall:
    """One call of the policy: exactly the tokens it saw, what it sampled, and their log-probabilities as sampled.

    Where `endpoint` is set the ids are unknown, and the three are empty: such a reply can't be trained on exactly.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    policy_version: int = 0
    finish: str = "stop"
    endpoint: EndpointReply | None = None

    @property
    def counted(self) -> bool:
        """Whether its tokens are known by number: no prompt is empty."""
        return self.endpoint is None or self.endpoint.prompt_tokens > 0

    @property
    def prompt_tokens(self) -> int:
        return self.endpoint.prompt_tokens if self.endpoint else len(self.prompt_ids)

    @property
    def sampled_tokens(self) -> int:
        return self.endpoint.sampled_tokens if self.endpoint else len(self.token_ids)


@dataclass(frozen=True)
class ToolUse:
    """What a tool's result came from and what the call changed: enough to replay it without running it.

    `tool` is empty where none was reached: an unknown one, a call that can't be read, one too many in a reply.
    `deterministic` is False where running it again may give another result. `files`: path -> text, None if deleted.
    `notes`: the keys that the call changed of what tools remember within a trace, JSON values, None if dropped.
    """

    tool: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    deterministic: bool = True
    files: Mapping[str, str | None] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Node:
    """One message of a trace. `parents` are node indices (several for a summary or merge; one twice where a call was
    shown that message alone, and not what led to it); `call` is set if sampled, `use` if it is a tool's raw result.
    `agent` is the sub-agent that it belongs to, "" the main one."""

    parents: tuple[int, ...]
    message: Message
    call: ModelCall | None = None
    view_hash: str = ""
    use: ToolUse | None = None
    agent: str = ""


OUTCOMES = (
    "finished",
    "truncated",
    "tool_limit",
    "context_limit",
    "harness_error",
    "sandbox_error",
    "model_error",
    "aborted",
)


@dataclass(frozen=True)
class Trace:
    """What happened when a policy met a task: a graph of message nodes in the order they were made.

    `outcome` is one of OUTCOMES. `facts` are deterministic counts of the rollout (tool calls, invalid calls, CPU
    backstop fired).
    """

    id: str
    task_id: str
    nodes: tuple[Node, ...]
    seed: int
    harness: str
    outcome: str
    facts: Mapping[str, float] = field(default_factory=dict)
    sandbox: str = ""  # what ran its tools: "bubblewrap", "landlock (weaker)"; "" where nothing ran in one

    @property
    def workspace(self) -> dict[str, str | None]:
        """The files that the main agent's tools changed, as they were at the end: path -> text, None if deleted.

        What a sub-agent changed is there once its assignment's result is.
        """
        uses = [node.use for node in self.nodes if node.use and not node.agent]
        return {path: text for use in uses for path, text in use.files.items()}

    @property
    def notes(self) -> dict[str, Any]:
        """What the main agent's tools remembered at the end."""
        uses = [node.use for node in self.nodes if node.use and not node.agent]
        changed = {key: value for use in uses for key, value in use.notes.items()}
        return {key: value for key, value in changed.items() if value is not None}

    @property
    def calls(self) -> list[ModelCall]:
        """The model calls agent by agent, the main one's first; each agent's in order."""
        found = [(node.agent, node.call) for node in self.nodes if node.call]
        agents = list(dict.fromkeys(["", *(agent for agent, _ in found)]))
        return [call for agent in agents for by, call in found if by == agent]

    @property
    def reply(self) -> str:
        """The content of the main agent's last message, thinking included; empty where there is none."""
        for node in reversed(self.nodes):
            if node.message.role == "assistant" and not node.agent:
                return node.message.content
        return ""

    @property
    def answer(self) -> str:
        """What the user sees of `reply`: the part after the thinking."""
        return split_thinking(self.reply)[1]

    def to_json(self) -> str:
        line = json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":"))
        if line.isascii() or not _has_surrogates(line):
            return line
        # A file that is no text is kept as lone surrogates, which no file can hold unless they are escaped.
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> Trace:
        raw = json.loads(line)
        raw["nodes"] = tuple(_node(node) for node in raw["nodes"])
        return cls(**raw)


def call_from(raw: Mapping[str, Any]) -> ModelCall:
    """A ModelCall from what JSON made of one."""
    parts = {**raw, **{name: tuple(raw[name]) for name in ("prompt_ids", "token_ids", "logprobs")}}
    if endpoint := raw.get("endpoint"):
        parts["endpoint"] = EndpointReply(**{**endpoint, "calls": tuple(map(tuple, endpoint["calls"]))})
    return ModelCall(**parts)


def _node(raw: dict[str, Any]) -> Node:
    call = None if raw["call"] is None else call_from(raw["call"])
    use = ToolUse(**raw["use"]) if raw.get("use") else None
    return Node(tuple(raw["parents"]), Message(**raw["message"]), call, raw["view_hash"], use, raw.get("agent", ""))


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


@dataclass(frozen=True)
class Score:
    """The outcome of grading one trace. A failed grading (`status` = failed) has no value: it is never a 0.

    `reason` of a failure: timeout, crash, sandbox, invalid_task. `components` are named parts of `value`.
    """

    status: Literal["graded", "failed"]
    grader: GraderRef
    value: float | None = None
    reason: str = ""
    components: Mapping[str, float] = field(default_factory=dict)
    evidence: str = ""

    def __post_init__(self) -> None:
        if (self.status == "graded") != (self.value is not None):
            raise ValueError(f"a graded score needs a value and a failed one has none; got {self.status}, {self.value}")


def split_thinking(reply: str) -> tuple[str, str]:
    """(thinking, answer) of an assistant reply. An unclosed <think> means that all of it is thinking."""
    if not reply.startswith(THINK_OPEN):
        return "", reply.strip()
    thinking, closed, answer = reply[len(THINK_OPEN) :].partition(THINK_CLOSE)
    return thinking.strip(), answer.strip() if closed else ""


def task_to_json(task: Task) -> str:
    return json.dumps(asdict(task), ensure_ascii=False, separators=(",", ":"))


def task_from_json(line: str) -> Task:
    raw = json.loads(line)
    raw["messages"] = tuple(Message(**message) for message in raw["messages"])
    raw["grader"] = GraderRef(**raw["grader"])
    return Task(**raw)
