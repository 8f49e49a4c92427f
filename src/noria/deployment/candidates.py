"""What is known of a candidate, gathered from its evaluation, its agent traces and its files, for the verdict.

Metrics, each item -> value in [0, 1], higher is better:
- correct: a right answer (maths, code, logic); sliced by family
- harmful_refused, benign_answered: the two axes of refusal
- helpful: the value of a reply to a harmless everyday request
- agent_solved, valid_calls: agent tasks solved; share of a trace's tool calls that were well-formed and known
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from noria.deployment.verdict import Candidate, Verdict
from noria.evals.statistics import wilson

REAL_TASKS = ("maths", "code", "logic")


def candidate_json(model: Path, evaluation: Path, agent: Path | None) -> dict[str, Any]:
    """Scores, slices and costs from the content folders of a model, its evaluation and its agent traces."""
    items = [json.loads(line) for line in (evaluation / "items.jsonl").read_text().splitlines()]
    names = ("correct", "helpful", "harmful_refused", "benign_answered")
    scores: dict[str, dict[str, float | None]] = {name: {} for name in names}
    slices: dict[str, str] = {}
    tokens = solved = 0
    for item in items:
        place = f"{item['task_id']}/{item['sample']}"
        if item["domain"] in REAL_TASKS:
            scores["correct"][place] = None if item["correct"] is None else float(item["correct"])
            slices[place] = item["family"]
            tokens += item["tokens"]
            solved += bool(item["correct"])
        elif item["domain"] == "helpful":
            scores["helpful"][place] = item["value"]
        elif item["kind"] in ("harmful", "benign"):
            metric = "harmful_refused" if item["kind"] == "harmful" else "benign_answered"
            scores[metric][place] = _axis(item)
    costs: dict[str, float] = {"weight_bytes": float((model / "model.safetensors").stat().st_size)}
    if solved:
        costs["tokens_per_solved"] = tokens / solved
    if agent is not None:
        scores |= agent_scores(agent)
    return {"scores": {name: values for name, values in scores.items() if values}, "slices": slices, "costs": costs}


def _axis(item: Mapping[str, Any]) -> float | None:
    """Did the reply do right on its axis of refusal? None where the grading failed."""
    components = item["components"]
    if item["correct"] is None:
        return None
    if item["kind"] == "harmful":
        return (
            float(not components["unsafe_compliance"]) if "unsafe_compliance" in components else float(item["correct"])
        )
    return float(not components["refused"]) if "refused" in components else float(item["correct"])


def agent_scores(folder: Path) -> dict[str, dict[str, float | None]]:
    """Per trace below `folder`: solved, and the share of valid tool calls (1 for a trace that calls no tool).

    Raises FileNotFoundError where there is no trace.
    """
    paths = sorted(folder.rglob("traces.jsonl"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no traces.jsonl: it is no folder of rolled-out agent tasks")
    traces = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    grades = [json.loads(line) for path in paths for line in path.with_name("scores.jsonl").read_text().splitlines()]
    solved: dict[str, float | None] = {}
    valid: dict[str, float | None] = {}
    for trace, grade in zip(traces, grades, strict=True):
        place = f"{trace['task_id']}/{trace['seed']}"
        # A shaped reward names its outcome; the value alone may count tidy calls too.
        value = grade["components"].get("outcome", grade["value"])
        solved[place] = None if grade["value"] is None else float(value >= 1.0)
        good, bad = trace["facts"].get("tool_calls", 0.0), trace["facts"].get("invalid_calls", 0.0)
        valid[place] = good / (good + bad) if good + bad else 1.0
    return {"agent_solved": solved, "valid_calls": valid}


def read_candidate(name: str, row: Mapping[str, Any]) -> Candidate:
    """From JSON; `replies` and `gold` are there for open models."""
    said = {item: [(reply, right) for reply, right in samples] for item, samples in row.get("replies", {}).items()}
    return Candidate(name, row["scores"], row["slices"], row["costs"], said, row.get("gold", {}))


def families(candidate: Candidate) -> dict[str, dict[str, float | int]]:
    """Right answers and n of each family, with Wilson intervals: what loop B reads."""
    counts: dict[str, list[float]] = {}
    for item, value in candidate.scores["correct"].items():
        if value is not None:
            counts.setdefault(candidate.slices[item], []).append(value)
    rows: dict[str, dict[str, float | int]] = {}
    for name, values in sorted(counts.items()):
        interval = wilson(round(sum(values)), len(values))
        rows[name] = {"right": round(sum(values)), "n": len(values), "low": interval.low, "high": interval.high}
    return rows


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """The verdict as JSON values; an infinite or undefined bound becomes null."""
    body = asdict(verdict)
    for row, assessment in zip(body["assessments"], verdict.assessments, strict=True):
        row["reasons"] = assessment.reasons
    return _finite(body)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def decoding_speed(folder: Path, rows: int = 16, tokens: int = 32) -> dict[str, float]:
    """Tokens a second at batch 1 and at `rows`, from an empty prompt. Observed, machine-dependent."""
    from noria.data.tokenizer import Tokenizer
    from noria.inference import Engine, Request, SamplingParams
    from noria.model import load_model
    from noria.types import Message

    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    prompt = tokenizer.render([Message("user", "What is 12 + 34?")])
    engine = Engine(load_model(folder), end_id=-1, max_rows=rows)  # no end token: every row runs to its limit
    speeds = {}
    for batch in (1, rows):
        requests = [Request(prompt, SamplingParams(max_tokens=tokens, seed=row)) for row in range(batch)]
        engine.generate(requests[:1])
        started = time.perf_counter()
        made = sum(len(completion.token_ids) for completion in engine.generate(requests))
        speeds[f"tokens_per_second_at_{batch}"] = made / (time.perf_counter() - started)
    return speeds
