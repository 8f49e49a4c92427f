"""Export to ATIF, Harbor's Agent Trajectory Interchange Format (schema_version ATIF-v1.7).

The format: RFC 0001 of the Harbor repository, and `harbor.models.trajectories` of the package on PyPI. A trajectory is
a line of steps; sub-agents are embedded trajectories, referred to from the result that they gave. What the format has
no field for (the graph's edges, view hashes, files and notes that a call changed, the score) goes into `extra`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from noria.harness.traces.entry import Entry
from noria.harness.traces.story import (
    Result,
    Turn,
    agents_of,
    call_id,
    is_invalid,
    line_of,
    reasoning_and_text,
    sub_agent_of,
    tokens_read,
    tokens_sampled,
)
from noria.types import Trace

SCHEMA_VERSION = "ATIF-v1.7"


def to_atif(entry: Entry, model_name: str | None = None, tokens: bool = True) -> dict[str, Any]:
    """The trajectory as JSON values; without `tokens` it has counts but no ids and log-probabilities."""
    main = _trajectory(entry.trace, "", model_name, tokens)
    main["session_id"] = entry.trace.id
    others = [agent for agent in agents_of(entry.trace) if agent]
    if others:
        main["subagent_trajectories"] = [_trajectory(entry.trace, agent, model_name, tokens) for agent in others]
    score = entry.score
    known = {
        "task_id": entry.trace.task_id,
        "seed": str(entry.trace.seed),
        "outcome": entry.trace.outcome,
        "facts": dict(entry.trace.facts),
        "sandbox": entry.trace.sandbox,
        "labels": dict(entry.labels),
        "family": entry.task.family if entry.task else None,
        "reward": score.value if score else None,
        "reward_components": dict(score.components) if score else None,
        "grader": f"{score.grader.name}@{score.grader.version}" if score else None,
        "grading_failed": score.reason if score and score.reason else None,
    }
    main["extra"] = _without_none(known)
    return clean(main)


def _trajectory(trace: Trace, agent: str, model_name: str | None, tokens: bool) -> dict[str, Any]:
    name, _, version = trace.harness.partition("@")
    steps = [_step(trace, item, tokens) for item in line_of(trace, agent)]
    if not steps:  # the format wants at least one
        steps = [{"source": "system", "message": "", "extra": {"empty": True}}]
    for number, step in enumerate(steps, 1):
        step["step_id"] = number
    return {
        "schema_version": SCHEMA_VERSION,
        "trajectory_id": f"{trace.id}/{agent}" if agent else trace.id,
        "agent": _without_none({"name": agent or name or "agent", "version": version or "0", "model_name": model_name}),
        "steps": steps,
        "final_metrics": {
            "total_prompt_tokens": tokens_read(trace, agent),
            "total_completion_tokens": tokens_sampled(trace, agent),
            "total_steps": len(steps),
        },
    }


def _step(trace: Trace, item: int | Turn, tokens: bool) -> dict[str, Any]:
    if isinstance(item, int):
        node = trace.nodes[item]
        # A tool's message that belongs to no call of this line is an observation of the system.
        source = "user" if node.message.role == "user" else "system"
        return {"source": source, "message": node.message.content, "extra": {"node": item, "role": node.message.role}}
    node = trace.nodes[item.reply]
    thinking, text = reasoning_and_text(node)
    step: dict[str, Any] = {"source": "agent", "message": text}
    if thinking:
        step["reasoning_content"] = thinking
    if node.call is not None:
        call = node.call
        metrics: dict[str, Any] = {"prompt_tokens": call.prompt_tokens, "completion_tokens": call.sampled_tokens}
        if tokens and call.endpoint is None:
            metrics |= {"prompt_token_ids": list(call.prompt_ids), "completion_token_ids": list(call.token_ids)}
            metrics["logprobs"] = list(call.logprobs)
        step["metrics"] = metrics | {"extra": {"policy_version": call.policy_version, "finish": call.finish}}
        step["llm_call_count"] = 1
    if item.results:
        step["tool_calls"] = [_tool_call(trace, result) for result in item.results]
        step["observation"] = {"results": [_observation(trace, result) for result in item.results]}
    step["extra"] = {
        "node": item.reply,
        "parents": list(node.parents),
        "view_hash": node.view_hash,
        "raw": node.message.content,
    }
    return step


def _tool_call(trace: Trace, result: Result) -> dict[str, Any]:
    node = trace.nodes[result.node]
    assert node.use is not None
    extra = {"invalid": True} if is_invalid(node) else {"deterministic": node.use.deterministic}
    return {
        "tool_call_id": call_id(result.node),
        "function_name": node.use.tool or "unknown",
        "arguments": dict(node.use.arguments),
        "extra": extra,
    }


def _observation(trace: Trace, result: Result) -> dict[str, Any]:
    node = trace.nodes[result.node]
    assert node.use is not None
    extra: dict[str, Any] = {"node": result.node}
    if node.use.files:
        extra["files"] = dict(node.use.files)
    if node.use.notes:
        extra["notes"] = dict(node.use.notes)
    if result.told:
        extra["shown_to_model"] = [trace.nodes[place].message.content for place in result.told]
    observed: dict[str, Any] = {"source_call_id": call_id(result.node), "content": node.message.content, "extra": extra}
    if agent := sub_agent_of(trace, node):
        observed["subagent_trajectory_ref"] = [{"trajectory_id": f"{trace.id}/{agent}", "session_id": trace.id}]
    return observed


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def clean(value: Any) -> Any:
    """Without lone surrogates, which other readers of UTF-8 refuse, and without infinities, which are no JSON."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, Mapping):
        return {clean(name): clean(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [clean(entry) for entry in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return -1e9 if value < 0 else None
    return value
