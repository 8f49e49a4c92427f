"""Models measured after each stage: accuracy, the rewards that moved them, the graders behind both, what they said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from noria.evals.statistics import mean_interval
from noria.studio.report.finished import Missing, Run, thinned

CHAIN = ("cold_start", "reasoning_rl", "rejection_sft", "alignment_rl")
OPEN_MODEL = ("before", "after")  # of a recipe with [open_model], and of `noria rft`
RL_STEPS = ("reasoning_rl", "alignment_rl", "agent_rl", "grpo")
# What a reward curve is watched by, in the order of the page; those that a run did not log are left out.
MONITORS = (
    "reward",
    "exact_reward",
    "gap",
    "success",
    "exact",
    "heldout",  # shown as the probe that it is: studio.training_metrics.py
    "kl",
    "loss_kl",
    "entropy",
    "reply_tokens",
    "truncated",
    "zero_variance_groups",
    "grading_failed",
    "distinct_2",
    "drift",
    "invalid_calls",
    "tool_calls",
)
TASKS_SHOWN = 3  # a family
GRADER_MISTAKES = 3


def posttraining(run: Run) -> dict[str, Any]:
    """Accuracy by domain and family after each stage, refusal on both axes, and paired differences between stages."""
    stages = [{"model": name, **measured(run, f"evaluate_{name}")} for name in _models(run)]
    if not stages:
        raise Missing(f"evaluate_{CHAIN[0]}")
    differences = run.read("compare", "comparison.json") if run.has("compare") else []
    sampling = run.artifact(f"evaluate_{stages[0]['model']}").manifest.config
    return {
        "stages": stages,
        "differences": differences,
        "temperature": sampling.get("temperature"),
        "max_tokens": sampling.get("max_tokens"),
        "steps": {name: dict(run.artifact(name).metrics) for name in run.finished(*CHAIN)},
    }


def _models(run: Run) -> list[str]:
    return [name for name in (*CHAIN, *OPEN_MODEL) if run.has(f"evaluate_{name}")]


def measured(run: Run, step: str) -> dict[str, Any]:
    """An evaluation's summary as rows."""
    summary = run.read(step, "summary.json")
    return {
        "domains": [{"domain": name, **row} for name, row in summary["domains"].items()],
        "families": [{"family": name, **row} for name, row in summary["families"].items()],
        "refusal": summary["refusal"],
        "failed_gradings": run.artifact(step).metrics["failed_gradings"],
    }


def rewards(run: Run) -> list[dict[str, Any]]:
    """For each RL step the curves that watch its reward, and the first fifth of the steps against the last."""
    found = []
    for name in run.finished(*RL_STEPS):
        history, config = run.history(name), run.artifact(name).manifest.config
        names = [monitor for monitor in MONITORS if any(row.get(monitor) is not None for row in history)]
        names += sorted({key for row in history for key in row if key.startswith("reward_")})
        found.append(
            {
                "step": name,
                "training_grader": config.get("training_grader", "exact"),
                "steps": len(history),
                "samples_per_step": config["prompts"] * config["group"],
                "prompts": config["prompts"],
                "group": config["group"],
                "monitors": [_monitor(monitor, history) for monitor in names],
            }
        )
    if not found:
        raise Missing(RL_STEPS[0])
    return found


def _monitor(name: str, history: list[dict[str, float | None]]) -> dict[str, Any]:
    curve = [[step, row[name]] for step, row in enumerate(history) if row.get(name) is not None]
    fifth = max(1, len(curve) // 5)
    values = [value for _, value in curve if value is not None]
    return {
        "name": name,
        "curve": thinned(curve),
        "first": mean_interval(values[:fifth]).as_json(),
        "last": mean_interval(values[-fifth:]).as_json(),
    }


def graders(run: Run) -> list[dict[str, Any]]:
    """True- and false-positive rates on known answers, with intervals and a few of the mistakes."""
    rows = []
    for name, row in run.read("graders", "graders.json").items():
        fields = ("domain", "weak", "version", "true_positive", "false_positive", "counts")
        rows.append({"grader": name} | {field: row[field] for field in fields})
        rows[-1]["mistakes"] = row["mistakes"][:GRADER_MISTAKES]
        rows[-1]["mistakes_total"] = row["counts"]["bad_accepted"] + row["counts"]["good_rejected"]
    return sorted(rows, key=lambda row: (row["domain"], row["weak"]))


def samples(run: Run) -> list[dict[str, Any]]:
    """The same few tasks of every family, answered by the model after each stage."""
    models = _models(run)
    if not models:
        raise Missing(f"evaluate_{CHAIN[0]}")
    by_task: dict[str, dict[str, Mapping[str, Any]]] = {}
    families: dict[str, list[str]] = {}
    for model in models:
        for row in run.lines(f"evaluate_{model}", "samples.jsonl"):
            task = row["item"]["task_id"]
            by_task.setdefault(task, {}).setdefault(model, row)
            if task not in families.setdefault(row["item"]["family"], []):
                families[row["item"]["family"]].append(task)
    return [
        {
            "family": family,
            "domain": next(iter(by_task[tasks[0]].values()))["item"]["domain"],
            "tasks": [_task(by_task[task]) for task in _telling(tasks, by_task)],
        }
        for family, tasks in families.items()
    ]


def _telling(tasks: list[str], by_task: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Tasks on which the models differ come first; otherwise the order of the evaluation."""

    def agree(task: str) -> bool:
        return len({row["item"]["correct"] for row in by_task[task].values()}) < 2

    return sorted(tasks, key=agree)[:TASKS_SHOWN]


def _task(replies: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    nodes = next(iter(replies.values()))["trace"]["nodes"]
    return {
        "messages": [node["message"] for node in nodes if node["message"]["role"] != "assistant"],
        "replies": [
            {
                "model": model,
                "reply": next(
                    (n["message"]["content"] for n in reversed(row["trace"]["nodes"]) if n["call"] is not None), ""
                ),
                **{field: row["item"][field] for field in ("correct", "value", "tokens", "outcome", "reason")},
            }
            for model, row in replies.items()
        ],
    }


def distillation(run: Run) -> dict[str, Any]:
    """Teacher, student and control: size, and accuracy on the same tasks; the student against its control, paired."""
    parts = (("teacher", "alignment_rl"), ("student", "student"), ("control", "student_control"))
    sizes = run.artifact("student_base").metrics
    rows = []
    for role, model in parts:
        weights = run.artifact(model).manifest.files["model.safetensors"].size
        rows.append(
            {
                "role": role,
                "model": model,
                "parameters": sizes["teacher"] if role == "teacher" else sizes["parameters"],
                "bytes": weights,
                **measured(run, f"evaluate_{model}"),
            }
        )
    return {
        "models": rows,
        "share": sizes["parameters"] / sizes["teacher"],
        "traces": dict(run.artifact("teacher_traces").metrics),
        "config": run.artifact("student").manifest.config,
        "differences": run.read("compare_students", "comparison.json"),
    }
