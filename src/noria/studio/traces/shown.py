"""One trace as the JSON that the page draws. All of it is data: the page puts text in as text, never as markup."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from noria.harness.traces import Entry
from noria.harness.traces.story import agents_of, is_failed, is_invalid, tokens_read, tokens_sampled, view_of
from noria.types import Node, Trace

Pieces = Callable[[int], str]  # a token's text


def trace_json(entry: Entry, row: Mapping[str, Any], pieces: Pieces | None = None) -> dict[str, Any]:
    """`row` is what the list shows of it; `pieces` spells tokens, without it they are shown as ids."""
    trace, task, score = entry.trace, entry.task, entry.score
    return {
        "row": dict(row),
        "id": trace.id,
        "seed": str(trace.seed),  # larger than what JavaScript counts exactly
        "outcome": trace.outcome,
        "harness": trace.harness,
        "sandbox": trace.sandbox,
        "facts": dict(trace.facts),
        "labels": dict(entry.labels),
        "agents": [
            {"name": agent, "sampled": tokens_sampled(trace, agent), "read": tokens_read(trace, agent)}
            for agent in agents_of(trace)
        ],
        "task": None
        if task is None
        else {"id": task.id, "family": task.family, "difficulty": task.difficulty, "answer": task.answer}
        | {"files": _texts(task.hidden.get("files", {}))},
        "score": None
        if score is None
        else {"status": score.status, "value": score.value, "reason": score.reason, "evidence": score.evidence}
        | {"components": dict(score.components), "grader": f"{score.grader.name}@{score.grader.version[:12]}"},
        "nodes": [_node(trace, place, pieces) for place in range(len(trace.nodes))],
    }


def _node(trace: Trace, place: int, pieces: Pieces | None) -> dict[str, Any]:
    node = trace.nodes[place]
    shown: dict[str, Any] = {
        "parents": list(dict.fromkeys(node.parents)),
        "role": node.message.role,
        "text": node.message.content,
        "agent": node.agent,
    }
    if node.use is not None:
        shown["use"] = {
            "tool": node.use.tool,
            "arguments": dict(node.use.arguments),
            "deterministic": node.use.deterministic,
            "files": _texts(node.use.files),
            "notes": dict(node.use.notes),
            "state": "invalid" if is_invalid(node) else "failed" if is_failed(node) else "ok",
        }
    if node.call is not None:
        shown["call"] = _call(trace, node, place, pieces)
    return shown


def _call(trace: Trace, node: Node, place: int, pieces: Pieces | None) -> dict[str, Any]:
    call = node.call
    assert call is not None
    logprobs = [*call.logprobs, *[None] * (len(call.token_ids) - len(call.logprobs))]
    texts = [pieces(token) if pieces else None for token in call.token_ids]
    return {
        "read": call.prompt_tokens,
        "sampled": call.sampled_tokens,
        "finish": call.finish,
        "policy_version": call.policy_version,
        "view_hash": node.view_hash,
        "view": view_of(trace, place),
        "tokens": [list(token) for token in zip(call.token_ids, logprobs, texts, strict=False)],
    }


def prompt_json(entry: Entry, place: int, pieces: Pieces | None = None) -> list[list[Any]]:
    """The exact prompt of the call at node `place`: [id, text or null] a token. Raises IndexError, LookupError."""
    call = entry.trace.nodes[place].call
    if call is None:
        raise LookupError(f"node {place} was not sampled")
    return [[token, pieces(token) if pieces else None] for token in call.prompt_ids]


def _texts(files: Any) -> dict[str, Any]:
    return dict(files) if isinstance(files, Mapping) else {}
