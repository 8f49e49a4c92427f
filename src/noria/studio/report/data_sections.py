"""The chain with its keys and clocks, and what became of the documents."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from noria.studio.report.finished import FINISHED, Run, seconds_between
from noria.studio.training_metrics import OVER_ALL_STEPS, end

OPEN_MODEL = "s4_open_model"  # in the place of stages 1 to 4 where a recipe starts from an imported model
STAGES = {
    "s1_raw_data": "Raw data",
    "s2_data_engineering": "Data engineering",
    "s3_system_recipe": "System recipe",
    "s4_pretraining": "Pretraining",
    OPEN_MODEL: "Open model",
    "s5_posttraining": "Post-training",
    "s6_evaluation": "Evaluation, grader, reward",
    "s7_agent_harness": "Agent harness",
    "s8_distillation": "Distillation",
    "s9_deployment": "Deployment",
    "loop_a": "Loop A: traffic to data",
    "loop_b": "Loop B: evaluation to mixture",
}
SHOWN_REJECTS = 3  # excerpts a reason
_PARTICULAR = re.compile(r":|,| [0-9a-f]{32}")  # where the general part of a reason ends


def chain(run: Run) -> list[dict[str, Any]]:
    """The nine stages and the two loops, each with its steps: key, clock, and whether it was made or reused."""
    found = []
    for stage, title in STAGES.items():
        steps = [_step(run, row) for row in run.rows.values() if row["stage"] == stage]
        if steps:
            spent = sum(step["seconds"] or 0.0 for step in steps)
            finished = sum(step["status"] in FINISHED for step in steps)
            found.append({"stage": stage, "title": title, "seconds": spent, "finished": finished, "steps": steps})
    return found


def _step(run: Run, row: Mapping[str, Any]) -> dict[str, Any]:
    name = row["step_name"]
    artifact = run.artifact(name) if run.has(name) else None
    done = row["status"] in FINISHED
    seconds = run.store.runs.seconds_of_key(row["key"]) if done else seconds_between(row["started"], row["finished"])
    return {
        "name": name,
        "key": row["key"],
        "kind": artifact.kind if artifact else "",
        "status": row["status"],
        "reason": row["reason"],
        "seconds": seconds,
        "bytes": artifact.manifest.size if artifact else None,
        **{name: end(name, [value for _, value in run.store.runs.curve(row["key"], name)]) for name in OVER_ALL_STEPS},
    }


def raw_data(run: Run) -> dict[str, Any]:
    """What came in: every source with kind, licence and pin, and what could not be read."""
    metrics, sources = run.artifact("raw_data").metrics, run.read("raw_data", "sources.json")
    rows = [
        {
            "name": name,
            **{field: source.get(field) for field in ("kind", "licence", "records", "raw_bytes", "set_aside")},
        }
        | {"pin": _pin(source.get("pin") or {})}
        for name, source in sorted(sources.items(), key=lambda item: (item[1]["kind"], item[0]))
    ]
    aside = Counter(row["reason"] for row in _table(run, "raw_data", "rejects.parquet"))
    return {
        "bytes": metrics["raw_bytes"],
        "bytes_by_kind": metrics["raw_bytes_by_kind"],
        "records": metrics["records"],
        "set_aside": metrics["set_aside"],
        "set_aside_by_reason": dict(aside.most_common()),
        "sources": rows,
    }


def _pin(pin: Mapping[str, Any]) -> str:
    return f"{pin['name']} {pin['version']}" if "name" in pin else str(pin.get("path", ""))


def funnel(run: Run) -> dict[str, Any]:
    """Counts in and out by step x source, by step and language, and rejects by step, reason and language."""
    rows = run.read("corpus", "funnel.json")
    kinds = {name: source["kind"] for name, source in run.read("corpus", "sources.json").items()}
    steps = list(dict.fromkeys(row["step"] for row in rows))
    sources = sorted({row["source"] for row in rows}, key=lambda name: (kinds.get(name, ""), name))
    return {
        "steps": [{"step": step, **_total(row for row in rows if row["step"] == step)} for step in steps],
        "sources": [
            {
                "source": source,
                "kind": kinds.get(source, ""),
                "steps": [
                    {"step": step, **_total(row for row in rows if (row["step"], row["source"]) == (step, source))}
                    for step in steps
                ],
            }
            for source in sources
        ],
        "languages": _languages(rows, steps[-1]),
        "rejects": _rejects(run),
        "contamination": [
            {"family": name, **counts}
            for name, counts in run.read("corpus", "contamination.json")["benchmarks"].items()
        ],
    }


def _total(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    total = dict.fromkeys(("docs_in", "docs_out", "bytes_in", "bytes_out"), 0)
    for row in rows:
        for name in total:
            total[name] += row[name]
    total |= {f"{unit}_removed": total[f"{unit}_in"] - total[f"{unit}_out"] for unit in ("docs", "bytes")}
    return total


def _languages(rows: list[dict[str, Any]], last: str) -> list[dict[str, Any]]:
    """Documents by language as they were tagged (the first step that knows languages) and as they remain."""
    tagged, kept = Counter[str](), Counter[str]()
    first = next((row["step"] for row in rows if row["language"] != "und"), last)
    for row in rows:
        if row["step"] == first:
            tagged[row["language"]] += row["docs_in"]
        if row["step"] == last:
            kept[row["language"]] += row["docs_out"]
    return [{"language": name, "docs": count, "kept": kept[name]} for name, count in tagged.most_common()]


def _rejects(run: Run) -> list[dict[str, Any]]:
    counts = Counter[tuple[str, str, str]]()
    shown: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in _table(run, "corpus", "rejects"):
        reason = general(row["reason"])
        counts[row["step"], reason, row["language"]] += 1
        examples = shown.setdefault((row["step"], reason), [])
        if len(examples) < SHOWN_REJECTS:
            examples.append({"source": row["source"], "reason": row["reason"], "excerpt": row["excerpt"]})
    found = []
    for step, reason in shown:
        languages = Counter({lang: n for (s, r, lang), n in counts.items() if (s, r) == (step, reason)})
        found.append(
            {
                "step": step,
                "reason": reason,
                "docs": languages.total(),
                "languages": [{"language": name, "docs": n} for name, n in languages.most_common()],
                "examples": shown[step, reason],
            }
        )
    return sorted(found, key=lambda row: -row["docs"])


def general(reason: str) -> str:
    """The reason without what is particular to one document: "too few words: 12" is "too few words"."""
    return _PARTICULAR.split(reason)[0].removesuffix(" of").strip()


def _table(run: Run, step: str, name: str) -> list[dict[str, Any]]:
    """The rows of a Parquet file, or of all files of a folder."""
    import pyarrow.parquet as pq

    path = run.artifact(step).content / name
    paths = sorted(path.glob("*.parquet")) if path.is_dir() else [path] if path.is_file() else []
    return [row for one in paths for row in pq.read_table(one).to_pylist()]
