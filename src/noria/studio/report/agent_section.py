"""The agent harness: success before and after RL by split, and traces with their tool calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from noria.studio.report.finished import Run

PAIRS_SHOWN = 3  # a split: where the models differ, first


def agent(run: Run) -> dict[str, Any]:
    results = run.read("agent_evaluation", "results.json")
    order = run.artifact("agent_evaluation").manifest.config.get("order") or list(results["models"])
    order = [name for name in order if name in results["models"]]
    splits = list(results["models"][order[0]])
    rows = [
        {"split": split, "models": [{"model": name, **results["models"][name][split]} for name in order]}
        for split in splits
    ]
    every = [model for row in rows for model in row["models"]]
    return {
        "splits": rows,
        "differences": results["differences"],
        # The step fails unless every trace replays and is graded alike again, so those replayed are those regraded.
        "replayed": sum(model["replayed"] for model in every),
        "traces": sum(model["success"]["n"] + model["failed_gradings"] for model in every),
        "failed_gradings": sum(model["failed_gradings"] for model in every),
        "demonstrations": dict(run.artifact("agent_demonstrations").metrics) if run.has("agent_demonstrations") else {},
        "shown": [_shown(run, order, split) for split in splits],
    }


def _shown(run: Run, order: list[str], split: str) -> dict[str, Any]:
    tasks = {task["id"]: task for task in run.lines("agent_evaluation", f"{order[0]}/{split}/tasks.jsonl")}
    by_model = {name: _graded(run, name, split) for name in order}
    outcomes = {task: tuple(by_model[name].get(task, {"solved": None})["solved"] for name in order) for task in tasks}
    chosen: list[str] = []
    for wanted in sorted(set(outcomes.values()), key=lambda pattern: (len(set(pattern)) < 2, str(pattern))):
        chosen += [task for task in tasks if outcomes[task] == wanted][:2]
    return {
        "split": split,
        "tasks": [
            {
                "messages": tasks[task]["messages"],
                "answer": tasks[task]["answer"],
                "files": [
                    {"name": name, "content": text}
                    for name, text in (tasks[task].get("hidden") or {}).get("files", {}).items()
                ],
                "traces": [{"model": name, **by_model[name][task]} for name in order if task in by_model[name]],
            }
            for task in chosen[:PAIRS_SHOWN]
        ],
    }


def _graded(run: Run, model: str, split: str) -> dict[str, dict[str, Any]]:
    """task id -> what the model did there and whether that solved it."""
    place = f"{model}/{split}"
    pairs = zip(
        run.lines("agent_evaluation", f"{place}/traces.jsonl"),
        run.lines("agent_evaluation", f"{place}/scores.jsonl"),
        strict=True,
    )
    return {trace["task_id"]: _trace(trace, score) for trace, score in pairs}


def _trace(trace: Mapping[str, Any], score: Mapping[str, Any]) -> dict[str, Any]:
    outcome = score["components"].get("outcome", score["value"])
    return {
        "outcome": trace["outcome"],
        "solved": None if score["value"] is None else outcome >= 1.0,
        "evidence": score["evidence"] or score["reason"],
        "tool_calls": trace["facts"].get("tool_calls"),
        "sampled_tokens": trace["facts"].get("sampled_tokens"),
        "messages": [_message(node["message"]) for node in trace["nodes"]],
    }


def _message(message: Mapping[str, str]) -> dict[str, str]:
    """A message, its role "call" where the assistant calls a tool."""
    called = message["role"] == "assistant" and "<|call|>" in message["content"]
    return {
        "role": "call" if called else message["role"],
        "content": message["content"].replace("<|call|>", "") if called else message["content"],
    }
