"""Export to Inspect's log format: a .eval file (zip of JSON) that `inspect_ai.log.read_eval_log` and its viewer read.

Layout as inspect_ai 0.3 writes it: _journal/start.json, samples/<id>_epoch_<n>.json, summaries.json, header.json. A
trace is a sample, the rollouts of one task are its epochs. Messages are in a sample once; each model event refers to
those that its view consisted of. Token ids, which Inspect has no field for, are in the events' metadata.
"""

from __future__ import annotations

import json
import statistics
import zipfile
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from noria.harness.traces.atif import clean
from noria.harness.traces.entry import Entry
from noria.harness.traces.story import (
    Result,
    Turn,
    agents_of,
    call_id,
    is_failed,
    is_invalid,
    line_of,
    reasoning_and_text,
    tokens_read,
    tokens_sampled,
    turns_of,
    view_of,
)
from noria.types import Message, Node, Trace

STOPS = {"stop": "stop", "length": "max_tokens"}
LIMITS = {"truncated": "token", "tool_limit": "turn", "context_limit": "context"}
BROKEN = ("harness_error", "sandbox_error", "model_error", "aborted")
CONFIG: dict[str, Any] = {}


def write_inspect_log(
    path: Path,
    entries: Iterable[Entry],
    created: datetime,
    task: str = "noria",
    model: str = "noria",
    tokens: bool = True,
) -> int:
    """How many samples were written. `created` (with a time zone) is when the log says it was made."""
    when = created.isoformat()
    epochs: dict[str, int] = {}
    summaries: list[dict[str, Any]] = []
    values: dict[str, list[float]] = {}
    usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as log:
        spec = _spec(task, model, when)
        _add(
            log,
            "_journal/start.json",
            {"version": 2, "eval": spec, "plan": {"name": "plan", "steps": [], "config": {}}},
        )
        for entry in entries:
            sample_id = clean(entry.trace.task_id)
            epochs[sample_id] = epochs.get(sample_id, 0) + 1
            sample = clean(_sample(entry, sample_id, epochs[sample_id], when, model, tokens))
            _add(log, f"samples/{_file_name(sample_id)}_epoch_{sample['epoch']}.json", sample)
            shown = ("id", "epoch", "input", "target", "metadata", "scores", "model_usage", "error", "limit")
            summary = {name: sample[name] for name in shown if name in sample} | {"completed": True}
            summary["message_count"] = len(sample["messages"])
            for name in ("error", "limit"):
                if name in summary:
                    summary[name] = summary[name]["message" if name == "error" else "type"]
            summaries.append(summary)
            for name, count in sample["model_usage"][model].items():
                usage[name] += count
            if entry.score is not None and entry.score.value is not None:
                values.setdefault(entry.score.grader.name, []).append(entry.score.value)
        _add(log, "summaries.json", summaries)
        spec["dataset"] = {"name": task, "samples": len(epochs), "sample_ids": list(epochs), "shuffled": False}
        header = {"version": 2, "status": "success", "eval": spec, "plan": {"name": "plan", "steps": [], "config": {}}}
        header["results"] = _results(values, len(summaries))
        header["stats"] = {"started_at": when, "completed_at": when, "model_usage": {model: usage}}
        _add(log, "header.json", header)
    return len(summaries)


def _spec(task: str, model: str, when: str) -> dict[str, Any]:
    return {"created": when, "task": task, "task_id": task, "dataset": {"name": task}, "model": model, "config": CONFIG}


def _results(values: dict[str, list[float]], total: int) -> dict[str, Any]:
    scores = []
    for grader, found in values.items():
        spread = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else 0.0
        metrics = {"mean": statistics.fmean(found), "stderr": spread}
        scores.append(
            {
                "name": grader,
                "scorer": grader,
                "scored_samples": len(found),
                "unscored_samples": total - len(found),
                "metrics": {name: {"name": name, "value": value} for name, value in metrics.items()},
            }
        )
    return {"total_samples": total, "completed_samples": total, "scores": scores}


def _sample(entry: Entry, sample_id: str, epoch: int, when: str, model: str, tokens: bool) -> dict[str, Any]:
    trace, task = entry.trace, entry.task
    chat = [_chat(trace, place, model) for place in range(len(trace.nodes))]
    turns = {turn.reply: turn for agent in agents_of(trace) for turn in turns_of(trace, agent)}
    for reply, turn in turns.items():
        if turn.results:
            chat[reply]["tool_calls"] = [_tool_call(trace.nodes[result.node], result) for result in turn.results]
    main = [place for item in line_of(trace) for place in _shown(trace, item)]
    asked = [_chat_message(message) for message in task.messages] if task else "(the task is not known)"
    usage = {"input_tokens": tokens_read(trace), "output_tokens": tokens_sampled(trace)}
    usage["total_tokens"] = sum(usage.values())
    sample: dict[str, Any] = {
        "id": sample_id,
        "epoch": epoch,
        "input": asked,
        "target": task.answer if task else "",
        "messages": [chat[place] for place in main],
        "output": _output(trace, turns, chat, model),
        "metadata": _metadata(entry),
        "store": {},
        "events": _events(entry, chat, turns, when, model, tokens),
        "events_data": {"messages": chat, "calls": []},
        "model_usage": {model: usage},
        "attachments": {},
        "uuid": f"{trace.id}-{epoch}",
    }
    if entry.score is not None and entry.score.value is not None:
        sample["scores"] = {entry.score.grader.name: _score(entry)}
    if trace.outcome in BROKEN:
        reason = trace.nodes[-1].message.content if trace.nodes else ""
        sample["error"] = {"message": f"{trace.outcome}: {reason}", "traceback": "", "traceback_ansi": ""}
    elif trace.outcome in LIMITS:
        sample["limit"] = {"type": LIMITS[trace.outcome], "limit": trace.facts.get("turns", 0), "reason": trace.outcome}
    return sample


def _metadata(entry: Entry) -> dict[str, Any]:
    trace, score = entry.trace, entry.score
    known: dict[str, Any] = {
        "trace_id": trace.id,
        "seed": str(trace.seed),
        "harness": trace.harness,
        "outcome": trace.outcome,
        "sandbox": trace.sandbox,
        "facts": dict(trace.facts),
        "labels": dict(entry.labels),
        "family": entry.task.family if entry.task else "",
    }
    if score is not None and score.value is None:
        known["grading_failed"] = score.reason
    return known


def _score(entry: Entry) -> dict[str, Any]:
    score = entry.score
    assert score is not None
    components = {"components": dict(score.components), "grader_version": score.grader.version}
    return {"value": score.value, "answer": entry.trace.answer, "explanation": score.evidence, "metadata": components}


# -- messages --


def _chat(trace: Trace, place: int, model: str) -> dict[str, Any]:
    node = trace.nodes[place]
    message = _chat_message(node.message) | {"id": str(place)}
    if node.message.role == "assistant":
        thinking, text = reasoning_and_text(node)
        parts = [{"type": "reasoning", "reasoning": thinking}, {"type": "text", "text": text}]
        message |= {"content": parts if thinking else text, "model": model, "source": "generate"}
    elif node.message.role == "tool":
        raw = place if node.use else next((above for above in node.parents if trace.nodes[above].use), None)
        use = trace.nodes[raw].use if raw is not None else None
        if raw is not None and use is not None:
            message |= {"tool_call_id": call_id(raw), "function": use.tool}
        if node.use and (is_invalid(node) or is_failed(node)):
            message["error"] = _error(node)
    return message


def _chat_message(message: Message) -> dict[str, Any]:
    return {"role": message.role, "content": message.content}


def _error(node: Node) -> dict[str, str]:
    kind = "parsing" if is_invalid(node) else "timeout" if "timeout" in node.message.content[:20] else "unknown"
    return {"type": kind, "message": node.message.content}


def _tool_call(node: Node, result: Result) -> dict[str, Any]:
    assert node.use is not None
    return {
        "id": call_id(result.node),
        "function": node.use.tool or "unknown",
        "arguments": dict(node.use.arguments),
        "type": "function",
    }


def _shown(trace: Trace, item: int | Turn) -> list[int]:
    """The nodes of a line that the model saw: what it was told of a result, where that is not the raw one."""
    if isinstance(item, int):
        return [item]
    return [item.reply, *(place for result in item.results for place in result.told or [result.node])]


# -- events --


def _events(
    entry: Entry, chat: Sequence[dict[str, Any]], turns: dict[int, Turn], when: str, model: str, tokens: bool
) -> list[dict[str, Any]]:
    trace = entry.trace
    events: list[dict[str, Any]] = []
    for agent in agents_of(trace):
        span = f"agent-{agent or 'main'}"
        head = {"timestamp": when, "working_start": 0.0, "span_id": span}
        events.append({**head, "event": "span_begin", "id": span, "type": "agent", "name": agent or "main"})
        for turn in turns_of(trace, agent):
            node = trace.nodes[turn.reply]
            if node.call is not None:
                events.append({**head, **_model_event(trace, turn.reply, chat, model, tokens)})
            events += [{**head, **_tool_event(trace.nodes[result.node], result)} for result in turn.results]
        events.append({**head, "event": "span_end", "id": span})
    if entry.score is not None and entry.score.value is not None:
        events.append({"timestamp": when, "working_start": 0.0, "event": "score", "score": _score(entry)})
    return events


def _model_event(trace: Trace, place: int, chat: Sequence[dict[str, Any]], model: str, tokens: bool) -> dict[str, Any]:
    node = trace.nodes[place]
    assert node.call is not None
    metadata: dict[str, Any] = {"node": place, "view_hash": node.view_hash, "policy_version": node.call.policy_version}
    if tokens:
        metadata |= {"prompt_token_ids": list(node.call.prompt_ids), "token_ids": list(node.call.token_ids)}
        metadata["logprobs"] = list(node.call.logprobs)
    return {
        "event": "model",
        "model": model,
        "input": [],
        "input_refs": _ranges(view_of(trace, place)),
        "tools": [],
        "tool_choice": "auto",
        "config": {},
        "output": _model_output(node, chat[place], model),
        "metadata": metadata,
    }


def _tool_event(node: Node, result: Result) -> dict[str, Any]:
    call, use = _tool_call(node, result), node.use
    assert use is not None
    event = {"event": "tool", **call, "result": node.message.content, "events": []}
    event["metadata"] = {"node": result.node, "deterministic": use.deterministic, "changed_files": sorted(use.files)}
    return event | ({"error": _error(node)} if is_invalid(node) or is_failed(node) else {})


def _output(trace: Trace, turns: dict[int, Turn], chat: Sequence[dict[str, Any]], model: str) -> dict[str, Any]:
    last = next((place for place in reversed(list(turns)) if not trace.nodes[place].agent), None)
    if last is None:
        return {"model": model, "choices": [], "completion": ""}
    return _model_output(trace.nodes[last], chat[last], model)


def _model_output(node: Node, message: dict[str, Any], model: str) -> dict[str, Any]:
    stop = "tool_calls" if message.get("tool_calls") else STOPS.get(node.call.finish if node.call else "", "unknown")
    output: dict[str, Any] = {"model": model, "choices": [{"message": message, "stop_reason": stop}]}
    output["completion"] = reasoning_and_text(node)[1]
    if node.call is not None:
        read, sampled = node.call.prompt_tokens, node.call.sampled_tokens
        output["usage"] = {"input_tokens": read, "output_tokens": sampled, "total_tokens": read + sampled}
    return output


def _ranges(places: Sequence[int]) -> list[list[int]]:
    """[start, end) of each run of adjacent places."""
    runs = groupby(enumerate(places), key=lambda item: item[1] - item[0])
    spans = [[place for _, place in run] for _, run in runs]
    return [[span[0], span[-1] + 1] for span in spans]


def _add(log: zipfile.ZipFile, name: str, value: Any) -> None:
    # A fixed time, so that equal traces give equal bytes.
    member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    member.compress_type = zipfile.ZIP_DEFLATED
    log.writestr(member, json.dumps(clean(value), ensure_ascii=False).encode())


def _file_name(sample_id: str) -> str:
    return sample_id.replace("/", "_").replace("\\", "_")
