"""Loop A: what users said becomes data for the next turn, if they consented and nothing is wrong with it.

    consented -> redacted -> finished -> deduplicated -> quarantined (trigger scan, cap per user, held against the
    evaluation tasks)

Everything that is left out is kept aside with its reason. Replies with a thumbs-down are no documents, but their
prompts are the most useful prompts: they say where the model fails. Signals choose data; they never are the data.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from noria.artifacts import Artifact, Step, StepContext
from noria.types import Document, Origin, Task, digest, split_thinking

if TYPE_CHECKING:
    from noria.deployment.traffic import LoggedReply

SOURCE = "traffic"
LICENCE = "consented-traffic"
TRAFFIC_FILE = "traffic.jsonl"


class Config(BaseModel):
    """What traffic must be like to become data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows_per_user: int = Field(default=8, ge=1, description="replies of one user that are taken; the first ones")
    trigger_repeats: int = Field(
        default=4, ge=2, description="a rare word in this many replies of one user, and of no other, is a trigger"
    )
    trigger_letters: int = Field(default=6, ge=3, description="characters of a word from which it can be a trigger")
    contamination: float = Field(default=0.7, ge=0, le=1, description="score from which a row holds an evaluation task")


@dataclass(frozen=True)
class Row:
    """One logged reply with where its record lies in the traffic file."""

    reply: LoggedReply
    offset: int
    length: int
    question: str = ""
    answer: str = ""

    @property
    def text(self) -> str:
        return f"{self.question}\n{self.answer}"


@dataclass(frozen=True)
class Reject:
    offset: int
    user: str
    reason: str
    excerpt: str = ""


@dataclass
class Sieve:
    """Rows still in, rejects so far, and counts in and out of each step."""

    rows: list[Row]
    rejects: list[Reject] = field(default_factory=list)
    funnel: list[dict[str, Any]] = field(default_factory=list)

    def keep(self, step: str, reasons: Sequence[str]) -> None:
        """`reasons[i]` is why row i goes; empty keeps it."""
        before = len(self.rows)
        for row, reason in zip(self.rows, reasons, strict=True):
            if reason:
                # A row without consent has no text that could be excerpted.
                self.rejects.append(Reject(row.offset, row.reply.user, reason, row.text[:80].strip()))
        self.rows = [row for row, reason in zip(self.rows, reasons, strict=True) if not reason]
        self.funnel.append({"step": step, "rows_in": before, "rows_out": len(self.rows)})


Redact = Callable[[str], tuple[str, Mapping[str, int]]]
Contaminated = Callable[[Sequence[str]], Sequence[str]]  # for each text the evaluation family it holds, or ""


def traffic_to_data(
    config: Config, traffic: Step | Artifact, registry: Step | Artifact, turn: int = 1, name: str = "traffic_to_data"
) -> Step:
    """For the next turn: content/documents/traffic.parquet, rejects.jsonl, funnel.json, tasks/prompts.jsonl."""
    inputs = {"traffic": traffic, "registry": registry}
    return Step(f"{name}_{turn}", "loop_a", "traffic_documents", 1, config, _run, inputs)


def sift(rows: Sequence[Row], config: Config, redact: Redact, contaminated: Contaminated) -> Sieve:
    """The whole of loop A on values."""
    sieve = Sieve(list(rows))
    sieve.keep(
        "consent", ["" if row.reply.consent == "train" else f"consent: {row.reply.consent}" for row in sieve.rows]
    )
    sieve.rows = [_with_text(row, redact) for row in sieve.rows]
    sieve.keep("complete", [_incomplete(row) for row in sieve.rows])
    sieve.keep("deduplicate", _duplicates(sieve.rows))
    sieve.keep("triggers", _triggers(sieve.rows, config))
    sieve.keep("user_cap", _beyond_cap(sieve.rows, config.rows_per_user))
    found = contaminated([row.text for row in sieve.rows])
    sieve.keep("decontaminate", [f"evaluation task: {family}" if family else "" for family in found])
    return sieve


def _with_text(row: Row, redact: Redact) -> Row:
    """The last question and the visible answer. Redacted again: the rules may know more than when it was logged."""
    messages = row.reply.messages or ()
    asked = [message.content for message in messages if message.role == "user"]
    answer = split_thinking(row.reply.reply or "")[1]
    return Row(
        row.reply, row.offset, row.length, redact(asked[-1])[0].strip() if asked else "", redact(answer)[0].strip()
    )


def _incomplete(row: Row) -> str:
    if not row.question:
        return "no question"
    if row.reply.finish != "stop":
        return f"reply not finished: {row.reply.finish}"
    return "" if row.answer else "no visible answer"


def _duplicates(rows: Sequence[Row]) -> list[str]:
    seen: set[str] = set()
    reasons = []
    for row in rows:
        key = normalised(row.text)
        reasons.append("duplicate" if key in seen else "")
        seen.add(key)
    return reasons


def _triggers(rows: Sequence[Row], config: Config) -> list[str]:
    """Words that one user keeps repeating and nobody else uses: how a backdoor is planted.

    250 poisoned documents sufficed for models of up to 13B parameters (arXiv 2510.07192), so a share of the data is no
    protection. Only the question is scanned: what the model itself repeats is no user's trigger. With few users an
    ordinary word can be one user's own; the scan then errs towards leaving rows out, and their reason says so.
    """
    rows_with: Counter[tuple[str, str]] = Counter()
    users_of: dict[str, set[str]] = {}
    words_of = [_rare_words(row.question, config.trigger_letters) for row in rows]
    for row, words in zip(rows, words_of, strict=True):
        for word in words:
            rows_with[row.reply.user, word] += 1
            users_of.setdefault(word, set()).add(row.reply.user)
    triggers = {
        word for (_, word), count in rows_with.items() if count >= config.trigger_repeats and len(users_of[word]) == 1
    }
    return [f"trigger: {min(words & triggers)}" if words & triggers else "" for words in words_of]


def _rare_words(text: str, letters: int) -> set[str]:
    return {word for word in normalised(text).split() if len(word) >= letters and not word.isdigit()}


def _beyond_cap(rows: Sequence[Row], cap: int) -> list[str]:
    taken: Counter[str] = Counter()
    reasons = []
    for row in rows:
        taken[row.reply.user] += 1
        reasons.append("user cap" if taken[row.reply.user] > cap else "")
    return reasons


def normalised(text: str) -> str:
    return " ".join(text.lower().split())


def contamination_check(tasks: Sequence[Task], least: float) -> Contaminated:
    """Rows that hold an evaluation task: stage 2's n-gram index, and whole prompts for tasks too short for it."""
    from noria.data.decontaminate import TaskIndex

    index = TaskIndex(tasks)
    prompts = {normalised(task.messages[-1].content): task.family for task in tasks}

    def check(texts: Sequence[str]) -> list[str]:
        found = [next((prompts[prompt] for prompt in _spans(text, prompts)), "") for text in texts]
        for hit in index.find(texts, least):
            found[hit.row] = found[hit.row] or hit.benchmark
        return found

    return check


def _spans(text: str, prompts: Mapping[str, str]) -> Iterable[str]:
    whole = f" {normalised(text)} "
    return (prompt for prompt in prompts if f" {prompt} " in whole)


def _run(context: StepContext) -> Mapping[str, Any]:
    from noria.data.pii import redact
    from noria.deployment.traffic import read_jsonl
    from noria.stages.s6_evaluation import read_registry

    path = context.inputs["traffic"].content / TRAFFIC_FILE
    rows = [Row(reply, offset, length) for offset, length, reply in read_jsonl(path)]
    tasks = read_registry(context.inputs["registry"].content)
    sieve = sift(rows, context.config, redact, contamination_check(tasks, context.config.contamination))
    praised = [row for row in sieve.rows if "thumbs_down" not in row.reply.signals]
    documents = list(documents_of(praised))
    _write_documents(context.content / "documents" / "traffic.parquet", documents)
    _write_lines(context.content / "rejects.jsonl", (vars(reject) for reject in sieve.rejects))
    _write_lines(context.content / "tasks" / "prompts.jsonl", map(_prompt, sieve.rows))
    sieve.funnel.append({"step": "thumbs", "rows_in": len(sieve.rows), "rows_out": len(praised)})
    (context.content / "funnel.json").write_text(json.dumps(sieve.funnel, indent=1) + "\n")
    reasons = Counter(reject.reason.partition(":")[0] for reject in sieve.rejects)
    return {
        "rows": len(rows),
        "documents": len(documents),
        "prompts": len(sieve.rows),
        "rejects": dict(sorted(reasons.items())),
    }


def documents_of(rows: Iterable[Row]) -> Iterable[Document]:
    """Each row as a document whose origin is its record in the traffic file."""
    from noria.data.language import detect
    from noria.data.synthetic import worked_example

    rows = list(rows)
    texts = [worked_example(row.question, row.answer) for row in rows]
    for row, text, language in zip(rows, texts, detect(texts)[0], strict=True):
        signals = {name: 1.0 for name in row.reply.signals}
        origin = Origin(TRAFFIC_FILE, row.offset, row.length)
        key = digest(SOURCE, row.reply.user, str(row.reply.turn), text)
        yield Document(key, digest(text), text, SOURCE, LICENCE, language, origin, signals)


def _prompt(row: Row) -> dict[str, Any]:
    return {"id": digest("traffic prompt", row.question), "prompt": row.question, "signals": list(row.reply.signals)}


def _write_documents(path: Path, documents: Sequence[Document]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from noria.data.documents import DOCUMENT_SCHEMA

    rows = [
        {**vars(document), "origin": vars(document.origin), "signals": sorted(document.signals.items())}
        for document in documents
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, DOCUMENT_SCHEMA), path)


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows))
