"""The verdict with all that it weighed, the cards, the traffic of the release, and what both loops made of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from noria.evals.statistics import mean_interval, wilson
from noria.studio.report.finished import Run

METRICS = (
    "correct",
    "harmful_refused",
    "benign_answered",
    "helpful",
    "agent_solved",
    "valid_calls",
    "unseen",
    "format",
    "text",
)


def release(run: Run) -> dict[str, Any]:
    """The decision with its reasons, and every candidate by quality, refusal, tools and cost."""
    verdict, measured = run.read("verdict", "verdict.json"), run.read("candidates", "candidates.json")
    speeds = run.read("candidates", "speed.json", observed=True) or {}
    known = [metric for metric in METRICS if any(metric in row["scores"] for row in measured.values())]
    rows = []
    for assessment in verdict["assessments"]:
        name = assessment["name"]
        scores = measured[name]["scores"]
        rows.append(
            {
                **assessment,
                "model": measured[name]["model"],
                "metrics": [{"metric": metric, **_interval(scores.get(metric, {}))} for metric in known],
                "speed": speeds.get(name, {}),
            }
        )
    return {
        "decision": verdict["decision"],
        "chosen": verdict["chosen"],
        "reasons": verdict["reasons"],
        "rules": verdict["rules"],
        "p_below": round((1 - verdict["rules"]["level"]) / 2, 6) if "level" in verdict["rules"] else None,
        "incumbent": verdict["incumbent"],
        "candidates": rows,
        "alias": [
            {"key": move.key, "reason": move.reason, "time": move.time}
            for move in run.store.aliases.history("release/prod")
        ],
        "released": run.artifact("release").key if run.has("release") else "",
        "cards": _cards(run),
    }


def _interval(values: dict[str, float | None]) -> dict[str, Any]:
    known = [value for value in values.values() if value is not None]
    if all(value in (0.0, 1.0) for value in known):
        return wilson(round(sum(known)), len(known)).as_json()
    return mean_interval(known).as_json()


def _cards(run: Run) -> list[dict[str, str]]:
    if not run.has("release"):
        return []
    content = run.artifact("release").content
    paths = [content / name for name in ("model_card.md", "system_card.md")]
    return [{"name": path.name, "text": path.read_text(encoding="utf-8")} for path in paths if path.is_file()]


def traffic(run: Run) -> dict[str, Any]:
    """What was logged, who sent it, and what of it passed the quarantine of loop A."""
    found: dict[str, Any] = {"logged": dict(run.artifact("traffic").metrics)}
    sifted = f"traffic_to_data_{run.turn}"
    if run.has(sifted):
        reasons = Counter(row["reason"] for row in run.lines(sifted, "rejects.jsonl"))
        found["quarantine"] = {
            "steps": run.read(sifted, "funnel.json"),
            "rejects": [{"reason": reason, "rows": rows} for reason, rows in reasons.most_common()],
            "documents": run.artifact(sifted).metrics["documents"],
            "prompts": run.artifact(sifted).metrics["prompts"],
        }
    return found


def loop_b(run: Run) -> dict[str, Any]:
    """The next turn's mixture: each source's weight before and after, by the stated rule."""
    step = f"evals_to_pretraining_{run.turn}"
    change, config = run.read(step, "mixture.json"), run.artifact(step).manifest.config
    return {
        "rule": change["rule"],
        "settings": {name: config[name] for name in ("target", "strength", "most", "least_share")},
        "model": change["measured"]["model"],
        "moved_share": run.artifact(step).metrics["moved_share"],
        "sources": [
            {
                "source": name,
                "before": weight,
                "after": change["after"].get(name, 0.0),
                "factor": change["factors"].get(name),
            }
            for name, weight in change["before"].items()
        ],
        "families": [
            {
                "family": name,
                "accuracy": row["right"] / row["n"] if row["n"] else None,
                "low": row["low"],
                "high": row["high"],
                "n": row["n"],
                "deficit": change["deficits"].get(name),
            }
            for name, row in change["measured"]["families"].items()
        ],
    }
