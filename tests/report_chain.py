"""A small finished chain for the report's tests: every step through the real store, with the files that stages write.

All text that could come from a document, a user or a model holds `HOSTILE`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, create_model

from noria.artifacts import Executor, Step, StepContext, Store
from noria.types import digest

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>{{ 7 * 7 }}"
DOMAINS = {"maths": "addition", "code": "list_function", "logic": "boolean", "helpful": "helpful", "safety": "safety"}
CHAIN = ("cold_start", "reasoning_rl", "rejection_sft", "alignment_rl")


class Made(BaseModel):
    """Identity of a step of this chain: what it writes, by its digest."""

    model_config = ConfigDict(extra="forbid")
    written: str


def make(context: StepContext, files: Mapping[str, Any], numbers: Mapping[str, Any]) -> Mapping[str, Any]:
    """Write JSON, JSON Lines (a list under *.jsonl), Parquet (rows) or text; the metrics are `numbers`."""
    for name, value in files.items():
        path = context.content / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(value), path)
        elif name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row) + "\n" for row in value))
        else:
            # A configuration holds no NaN, but a history may.
            path.write_text(value if isinstance(value, str) else json.dumps(value).replace('"NaN"', "NaN"))
    for step in range(4):
        context.log(step, loss_ce=4.0 - step, tokens_per_second=1000.0 + step, peak_memory_bytes=6e8)
    return numbers


def interval(estimate: float, n: int = 40) -> dict[str, Any]:
    return {"estimate": estimate, "low": max(0.0, estimate - 0.1), "high": min(1.0, estimate + 0.1), "n": n}


def chain(turn: int = 1, until: str = "") -> list[Step]:
    """The steps of `turn`, up to and including `until` if given."""
    made: dict[str, Step] = {}

    def add(name: str, stage: str, kind: str, files: dict[str, Any], *needs: str, **config: Any) -> None:
        numbers = config.pop("numbers", {})
        # What a step's own configuration has besides: fields, for only they are part of what a manifest keeps.
        fields: dict[str, Any] = {field: (Any, value) for field, value in config.items()}
        settings = create_model("Made", __base__=Made, **fields)(written=digest(json.dumps([files, numbers])))

        def run(context: StepContext) -> Mapping[str, Any]:
            return make(context, files, numbers)

        made[name] = Step(name, stage, kind, 1, settings, run, {need: made[need] for need in needs})

    _data(add)
    _training(add, turn)
    _posttraining(add, turn)
    _agent(add)
    _distillation(add)
    _release(add, turn)
    names = list(made)
    return [made[name] for name in (names[: names.index(until) + 1] if until else names)]


def finished_store(root: Any, turns: int = 1, until: str = "") -> Store:
    """Arms of post-training from turn 1's base model, then the turns."""
    store = Store(root)
    Executor(store, "arms").run([*chain(until="base_model"), _ablations()])
    for turn in range(1, turns + 1):
        name = "tiny" if turn == 1 else f"tiny.turn{turn}"
        Executor(store, name).run(chain(turn, until))
    return store


def _ablations() -> Step:
    def run(context: StepContext) -> Mapping[str, Any]:
        means = {arm: dict.fromkeys(("all", "maths"), interval(0.5, 5)) for arm in ("four_stages", "sft_alone")}
        body = {"means": means, "first": "four_stages", "first_minus": {"sft_alone": means["sft_alone"]}}
        return make(context, {"ablations.json": {**body, "seeds": [0, 1, 2, 3, 4]}}, {})

    return Step("ablations", "s6_evaluation", "ablations", 1, Made(written="arms"), run)


def _data(add: Any) -> None:
    add("registry", "s6_evaluation", "registry", {"tasks.jsonl": []})
    rate = {"true_positive": interval(0.95), "false_positive": interval(0.05)}
    counts = {"bad_accepted": 2, "bad_rejected": 38, "good_accepted": 38, "good_rejected": 2}
    mistake = {"answer": HOSTILE, "expected": "4", "found": HOSTILE, "known": "bad", "trick": "markup"}
    grader = {**rate, "counts": counts, "mistakes": [mistake], "domain": "maths", "version": "ab" * 16}
    rows = {"maths": {**grader, "weak": False}, "maths_weak": {**grader, "weak": True}}
    add("graders", "s6_evaluation", "graders", {"graders.json": rows})
    source = {"licence": "MIT", "format": "html", "records": 10, "raw_bytes": 5000, "set_aside": 1}
    sources = {
        "web": {**source, "kind": "crawl", "pin": {"name": "Web", "version": "1.0"}},
        "synthetic_addition": {**source, "kind": "synthetic", "pin": {}},
    }
    aside = [{"source": "web", "name": HOSTILE, "file": "a", "offset": 0, "length": 0, "reason": "empty"}]
    totals = {
        "raw_bytes": 10000,
        "raw_bytes_by_kind": {"crawl": 5000, "synthetic": 5000},
        "records": 20,
        "set_aside": 1,
    }
    files = {"sources.json": sources, "rejects.parquet": aside}
    add("raw_data", "s1_raw_data", "raw_data", files, numbers=totals)
    funnel = [
        {"step": step, "source": name, "language": "en"}
        | {"docs_in": i, "docs_out": o, "bytes_in": 90 * i, "bytes_out": 90 * o}
        for step, i, o in (("extract", 10, 10), ("quality", 10, 7), ("exact", 7, 6))
        for name in sources
    ]  # fmt: skip
    reject = {"id": "r", "source": "web", "language": "en", "step": "quality", "excerpt": HOSTILE}
    rejects = [{**reject, "reason": f"too few words: {n}"} for n in (1, 2, 3)] + [{**reject, "reason": HOSTILE}]
    files = {
        "funnel.json": funnel,
        "sources.json": sources,
        "rejects/web.parquet": rejects,
        "contamination.json": {"benchmarks": {"addition": {"tasks": 8, "documents": 1}}},
    }
    add("corpus", "s2_data_engineering", "corpus", files, "raw_data", "registry", numbers={"documents": 12})


def _training(add: Any, turn: int) -> None:
    shard = {"licence": "MIT", "train_tokens": 900, "heldout_tokens": 90}
    shards = {"sources": {"web": {**shard, "kind": "crawl"}}, "weights": {"web": 1.0}, "turn": turn}
    add("shards", "s2_data_engineering", "shards", {"shards.json": shards}, "corpus")
    points = [
        {"width": w, "layers": 2, "matmul_parameters": 1000 * w, "tokens": t}
        | {"learning_rate": 0.02, "loss": 9.0 - w / 32}
        for w in (32, 64)
        for t in (100, 200, 400)
    ]  # fmt: skip
    add("ladder", "s3_system_recipe", "ladder", {"ladder.json": {"points": points, "sweep": []}}, "shards")
    law = {"E": 1.0, "A": 50.0, "alpha": 0.5, "B": 40.0, "beta": 0.4, "heldout_error": 0.01, "refits": 20}
    law["intervals"] = {name: [0.1, 60.0] for name in ("E", "A", "alpha", "B", "beta")}  # type: ignore[assignment]
    predicted = {"mean": 3.2, "low": 3.0, "high": 3.4, "level": 0.95}
    plan = {
        "law": law,
        "predicted_loss": predicted,
        "parameters": 65000,
        "matmul_parameters": 64000,
        "train_tokens": 800,
        "batch_tokens": 200,
        "steps": 4,
        "learning_rate": 0.02,
        "schedule": {"name": "wsd", "warmup_steps": 1, "decay_share": 0.4},
        "choices": dict.fromkeys(("parameters", "train_tokens", "batch_tokens", "learning_rate"), "auto"),
        "limits": {"flops": 2e12},
    }
    add("plan", "s3_system_recipe", "plan", {"plan.json": plan}, "ladder")
    heldout = {
        "loss": 3.1,
        "loss_by_source": {"web": 3.1},
        "bits_per_byte": {"web": 1.7},
        "tokens_by_source": {"web": 256},
        "predicted": predicted,
        "epochs": {"web": 0.9},
    }
    files = {"heldout.json": heldout, "model.safetensors": "weights"}
    add("base_model", "s4_pretraining", "model", files, "plan", numbers={"parameters": 65000, "tokens": 800})


def items(shift: int) -> list[dict[str, Any]]:
    """20 graded items a domain; a later stage solves `shift` more of each."""
    rows = []
    for domain, family in DOMAINS.items():
        for place in range(20):
            kind = {"safety": "harmful" if place % 2 else "benign"}.get(domain, "")
            right = place < 2 + shift
            rows.append(
                {
                    "task_id": f"{domain}-{place}",
                    "sample": 0,
                    "family": family,
                    "domain": domain,
                    "kind": kind,
                    "correct": right,
                    "value": float(right),
                    "tokens": 9,
                    "outcome": "finished",
                    "reason": HOSTILE,
                }
            )
    return rows


def summary(shift: int) -> dict[str, Any]:
    share = (2 + shift) / 20
    row = {"accuracy": share, "low": share - 0.1, "high": share + 0.1, "n": 20, "failed": 0}
    return {
        "domains": dict.fromkeys(DOMAINS, row),
        "families": dict.fromkeys(DOMAINS.values(), row),
        "refusal": {"unsafe_compliance": interval(0.2, 20), "over_refusal": interval(0.1, 20)},
    }


def evaluation(shift: int) -> dict[str, Any]:
    rows = items(shift)
    samples = []
    for row in rows[::8]:
        said = {"role": "assistant", "content": f"<think>{HOSTILE}</think>{HOSTILE}"}
        asked = {"role": "user", "content": f"What is 1 + 1? {HOSTILE}"}
        nodes = [{"message": asked, "call": None}, {"message": said, "call": {"token_ids": [1]}}]
        samples.append({"item": row, "trace": {"nodes": nodes}})
    return {"summary.json": summary(shift), "items.jsonl": rows, "samples.jsonl": samples}


def difference(old: str, new: str, domain: str) -> dict[str, Any]:
    row = {"from": old, "to": new, "domain": domain, "n": 40, "difference": 0.125, "low": 0.02, "high": 0.23}
    return row | {"gained": 5, "lost": 0, "p": 0.06, "p_holm": 0.06, "from_accuracy": 0.25, "to_accuracy": 0.375}


def _posttraining(add: Any, turn: int) -> None:
    history = [
        {"reward": 0.1 * step, "exact_reward": 0.08 * step, "gap": 0.02 * step, "entropy": 2.0, "reward_maths": 0.1}
        | {"reply_tokens": 20.0, "truncated": 0.1, "zero_variance_groups": 0.5, "correct_mean": "NaN"}
        | {"heldout": 0.3}
        for step in range(10)
    ]
    before = "base_model"
    for place, name in enumerate(CHAIN):
        files = {"model.safetensors": "weights" * 9, "history.json": history}
        config = {"prompts": 4, "group": 8, "training_grader": "weak"} if name.endswith("rl") else {}
        add(name, "s5_posttraining", "model", files, before, numbers={"steps": 10}, **config)
        sampling = {"temperature": 0.0, "max_tokens": 24}
        _evaluate(add, name, 5 * place + turn - 1, **sampling)
        before = name
    rows = [difference(CHAIN[i], CHAIN[i + 1], domain) for i in range(3) for domain in DOMAINS]
    add("compare", "s6_evaluation", "comparison", {"comparison.json": rows}, *(f"evaluate_{name}" for name in CHAIN))


def _evaluate(add: Any, name: str, shift: int, **config: Any) -> None:
    numbers = {"failed_gradings": 0}
    files = evaluation(shift)
    add(f"evaluate_{name}", "s6_evaluation", "evaluation", files, name, "registry", numbers=numbers, **config)


def _agent(add: Any) -> None:
    models = ("agent_cold_start", "agent_rl")
    history = [{"reward": 0.1 * step, "success": 0.1 * step, "tool_calls": 1.0} for step in range(6)]
    for name, before in zip(models, ("alignment_rl", "agent_cold_start"), strict=True):
        files = {"model.safetensors": "weights" * 9, "history.json": history}
        add(name, "s7_agent_harness", "model", files, before, prompts=2, group=4)
    files = {}
    task = {"id": "t", "messages": [{"role": "user", "content": f"find book {HOSTILE}"}], "answer": "33"}
    task["hidden"] = {"files": {"book": f"value 33 {HOSTILE}"}}
    for solved, name in enumerate(models):
        said = [
            {"role": "user", "content": "find book"},
            {"role": "assistant", "content": f"<|call|>read book {HOSTILE}"},
            {"role": "tool", "content": HOSTILE},
            {"role": "assistant", "content": "33"},
        ]
        trace = {"task_id": "t", "seed": 1, "outcome": "finished", "nodes": [{"message": one} for one in said]}
        trace["facts"] = {"tool_calls": 1, "sampled_tokens": 12}
        score = {"value": float(solved), "components": {"outcome": float(solved)}, "evidence": HOSTILE, "reason": ""}
        place = f"{name}/heldout"
        files |= {f"{place}/tasks.jsonl": [task], f"{place}/traces.jsonl": [trace], f"{place}/scores.jsonl": [score]}
    row = {"success": interval(0.5, 8), "failed_gradings": 0, "replayed": 8, "tool_calls": 1.0, "invalid_calls": 0.0}
    change = {"estimate": 0.4, "low": 0.1, "high": 0.7, "n": 8}
    files["results.json"] = {
        "models": {name: {"heldout": row} for name in models},
        "differences": [{"model": "agent_rl", "than": "agent_cold_start", "split": "heldout", "success": change}],
    }
    add("agent_evaluation", "s7_agent_harness", "agent_evaluation", files, *models, order=models)
    _evaluate(add, "agent_rl", 12)


def _distillation(add: Any) -> None:
    add("teacher_traces", "s8_distillation", "traces", {}, "alignment_rl", numbers={"traces": 30})
    sizes = {"parameters": 20000, "teacher": 65000}
    add("student_base", "s8_distillation", "model", {"model.safetensors": "w"}, "alignment_rl", numbers=sizes)
    for place, name in enumerate(("student_control", "student")):
        add(name, "s8_distillation", "model", {"model.safetensors": "ww"}, "student_base", arm=name)
        _evaluate(add, name, 3 * place)
    rows = [difference("student_control", "student", domain) for domain in DOMAINS]
    add("compare_students", "s6_evaluation", "comparison", {"comparison.json": rows}, "evaluate_student")


def _release(add: Any, turn: int) -> None:
    correct = {f"{place}/0": float(place < 20) for place in range(40)}
    row = {"scores": {"correct": correct}, "slices": {}, "costs": {"weight_bytes": 999.0}, "model": "ab" * 16}
    rows = {
        "alignment_rl": row,
        "agent_rl": {**row, "scores": {"correct": correct, "agent_solved": {"a": 1.0, "b": 0.0}}},
    }
    add("candidates", "s9_deployment", "candidates", {"candidates.json": rows}, "agent_rl", "alignment_rl")
    check = {"metric": "correct", "against": "floor", "interval": interval(0.5), "outcome": "pass", "words": HOSTILE}
    assessments = [
        {"name": name, "decision": "release", "primary": interval(0.5), "checks": [check], "reasons": [HOSTILE]}
        | {"costs": rows[name]["costs"]}
        for name in rows
    ]
    verdict = {
        "decision": "release",
        "chosen": "agent_rl",
        "reasons": ["agent_rl: release", HOSTILE],
        "rules": {"level": 0.95},
    }
    body = {**verdict, "incumbent": "", "assessments": assessments}
    add("verdict", "s9_deployment", "verdict", {"verdict.json": body}, "candidates")
    cards = {"model_card.md": f"# Model card\n{HOSTILE}", "system_card.md": "# System card"}
    add("release", "s9_deployment", "release", {**cards, "release.json": {}}, "verdict")
    signals = {"redactions": 1, "thumbs_up": 2, "thumbs_down": 1, "refused": 0}
    consent = {"consent_none": 1, "consent_store": 1, "consent_train": 6}
    numbers = {"source": "scripted", "requests": 8, **consent, **signals}
    add("traffic", "s9_deployment", "traffic", {"traffic.jsonl": []}, "release", numbers=numbers)
    files = {
        "funnel.json": [{"step": "consent", "rows_in": 8, "rows_out": 6}],
        "rejects.jsonl": [{"reason": f"trigger: {HOSTILE}", "user": "u", "offset": 0, "excerpt": HOSTILE}] * 2,
    }
    kept = {"documents": 4, "prompts": 6}
    add(f"traffic_to_data_{turn}", "loop_a", "traffic_documents", files, "traffic", numbers=kept)
    change = {
        "rule": "w' = w < 2",
        "before": {"web": 0.6, "synthetic_addition": 0.4},
        "after": {"web": 0.5, "synthetic_addition": 0.5},
        "factors": {"web": 1.0, "synthetic_addition": 1.5},
        "deficits": {"addition": 0.3},
        "measured": {"model": "agent_rl", "families": {"addition": {"right": 10, "n": 40, "low": 0.1, "high": 0.4}}},
    }
    settings = {"target": 0.9, "strength": 1.5, "most": 2.0, "least_share": 0.5}
    name = f"evals_to_pretraining_{turn}"
    add(name, "loop_b", "mixture", {"mixture.json": change}, "verdict", numbers={"moved_share": 0.1}, **settings)
