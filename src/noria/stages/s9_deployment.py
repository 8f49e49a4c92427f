"""Stage 9, deployment: int8 weights, candidates compared, a verdict, a release with its cards, and its traffic.

Promotion is no step: `promote` moves release/prod once a verdict, so that a rerun never undoes a rollback.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from noria.artifacts import Artifact, Numerics, Step, StepContext, Store, StoreError
from noria.stages.open_model_source import CHAT_FILES

STAGE = "s9_deployment"
ALIAS = "release/prod"
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")
# What deployment/candidates.py measures.
Metric = Literal[
    "correct", "helpful", "harmful_refused", "benign_answered", "agent_solved", "valid_calls",
    "unseen", "format", "text",
]  # fmt: skip
# The last three are of open models: see stages/open_model.py.


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RailConfig(_Section):
    metric: Metric
    margin: float = Field(default=0.05, gt=0, le=1, description="how much worse than the incumbent is still acceptable")
    floor: float = Field(default=0.0, ge=0, le=1, description="the lower bound must exceed this")


class VerdictConfig(_Section):
    """When a candidate is released; `noria.deployment.verdict` says how it is tested."""

    primary: Metric = Field(default="correct", description="correct: right answers over maths, code and logic")
    primary_test: str = Field(
        default="superior", pattern="^(superior|non_inferior)$", description="against the incumbent"
    )
    primary_margin: float = Field(
        default=0.02, gt=0, le=1, description="for non_inferior, and for preferring a cheaper candidate"
    )
    primary_floor: float = Field(default=0.1, ge=0, le=1, description="the lower bound must exceed this")
    guardrails: tuple[RailConfig, ...] = (
        RailConfig(metric="harmful_refused", floor=0.5),
        RailConfig(metric="benign_answered", floor=0.5),
    )
    level: float = Field(default=0.95, gt=0.5, lt=1, description="two-sided confidence level")
    cost: str = Field(
        default="weight_bytes", pattern="^(weight_bytes|tokens_per_solved)$", description="tells equals apart"
    )


class TrafficConfig(_Section):
    """The scripted users of a demonstration."""

    users: int = Field(default=12, ge=1, le=10_000, description="scripted users, besides one scripted spammer")
    requests_each: int = Field(default=4, ge=1, le=1000, description="requests of each user, one after the other")
    max_tokens: int = Field(default=96, ge=1, description="sampled tokens a reply")
    seed: int = Field(default=9000, ge=0)
    heldout_share: float = Field(
        default=0.1, ge=0, le=1, description="asked tasks that are evaluation tasks, to be found later"
    )


class Config(_Section):
    """[deployment] of a recipe."""

    verdict: VerdictConfig = VerdictConfig()
    traffic: TrafficConfig = TrafficConfig()
    retention_days: float = Field(default=30.0, gt=0, description="age at which logged traffic is deleted")
    traffic_bytes: int = Field(
        default=1 << 30, ge=1 << 20, description="size of the traffic log beyond which the oldest rows go"
    )


class QuantisedConfig(_Section):
    bits: int = 8


class CandidatesConfig(_Section):
    names: tuple[str, ...]


class ReleaseConfig(_Section):
    retention_days: float
    traffic_bytes: int


def quantised(config: Config, model: Step | Artifact, name: str = "quantised") -> Step:
    """`model` with int8 weights: a model artifact that `load_model` reads like any other."""
    return Step(name, STAGE, "model", 1, QuantisedConfig(), _quantise, {"model": model})


def candidates(
    config: Config,
    models: Mapping[str, Step | Artifact],
    evaluations: Mapping[str, Step | Artifact],
    agents: Mapping[str, Step | Artifact] | None = None,
    incumbent: Artifact | None = None,
    incumbent_evaluation: Step | Artifact | None = None,
    incumbent_agent: Step | Artifact | None = None,
) -> Step:
    """Results of all candidates, and of the incumbent on the same tasks: content/candidates.json.

    `evaluations[name]` is stage 6's evaluation of `models[name]`; `agents[name]`, where given, holds
    rolled-out agent tasks (harness.traces), in a folder of that name or alone.
    Raises ValueError where a model has no evaluation.
    """
    every: dict[str, Step | Artifact] = {"incumbent": incumbent} if incumbent else {}
    every.update(models)
    judged: dict[str, Any] = dict(evaluations)
    acting: dict[str, Any] = dict(agents or {})
    if incumbent:
        judged["incumbent"], acting["incumbent"] = incumbent_evaluation, incumbent_agent
    missing = [name for name in every if judged.get(name) is None]
    if missing:
        raise ValueError(f"no evaluation of {', '.join(missing)}: a candidate can only be judged by its results")
    inputs: dict[str, Any] = {}
    for name, model in every.items():
        inputs[f"model_{name}"], inputs[f"evaluation_{name}"] = model, judged[name]
        if acting.get(name) is not None:
            inputs[f"agent_{name}"] = acting[name]
    return Step("candidates", STAGE, "candidates", 1, CandidatesConfig(names=tuple(every)), _collect, inputs)


def verdict(config: Config, candidates: Step | Artifact) -> Step:
    """Release, reject or inconclusive, with all tests and their words: content/verdict.json."""
    return Step("verdict", STAGE, "verdict", 2, config.verdict, _decide, {"candidates": candidates})


def release(
    config: Config,
    verdict: Step | Artifact,
    models: Mapping[str, Step | Artifact],
    incumbent: Step | Artifact | None = None,
) -> Step:
    """The model that the verdict chose, with release.json, model_card.md and system_card.md.

    Without a release it holds the incumbent, kept, or, where nothing was released yet, the best candidate for preview;
    release.json says which. Only `promote` makes it production.
    """
    chosen = ReleaseConfig(retention_days=config.retention_days, traffic_bytes=config.traffic_bytes)
    inputs: dict[str, Any] = {"verdict": verdict, **{f"model_{name}": model for name, model in models.items()}}
    if incumbent:
        inputs["model_incumbent"] = incumbent
    return Step("release", STAGE, "release", 1, chosen, _release, inputs)


def holds_a_release(release: Artifact) -> bool:
    """Whether a release artifact holds a model that was released, now or in an earlier turn, and no preview."""
    found = _read(release, "release.json")
    return found["decision"] == "release" or found["kept_incumbent"]


def traffic(config: Config, release: Step | Artifact, numerics: Numerics | None = None) -> Step:
    """The real server, driven over HTTP by scripted users: content/traffic.jsonl. The log itself lies in observed/."""
    return Step("traffic", STAGE, "traffic", 1, config.traffic, _traffic, {"release": release}, numerics or Numerics())


def promote(store: Store, verdict: Artifact, release: Artifact) -> bool:
    """Moves release/prod to `release` if the verdict says so, once a verdict; False if nothing moved."""
    found = _read(verdict, "verdict.json")
    if found["decision"] != "release":
        return False
    return store.promote_once(ALIAS, verdict.key, release.key, found["reasons"][0])


def live_traffic_alias(turn: int) -> str:
    """Points to the live traffic that the release of `turn` met, for the next turn to learn from."""
    return f"traffic/turn{turn}"


def import_traffic(store: Store, traffic_db: Path, turn: int) -> Artifact:
    """The log of the live server that ran after `turn`, as an artifact keyed by its content; the turn's alias points to
    it from then on. Raises StoreError where there is no log."""
    from noria.deployment.traffic import export_jsonl, read_replies

    if not traffic_db.is_file():
        raise StoreError(f"{traffic_db} is no traffic log: `noria serve` writes one, by default <store>/traffic.sqlite")
    release = store.aliases.current(ALIAS)
    with tempfile.TemporaryDirectory() as work:
        exported = Path(work) / "traffic.jsonl"
        export_jsonl(read_replies(traffic_db), exported)
        inputs = {"release": release} if release else {}
        imported = store.import_content("traffic", {"traffic.jsonl": exported}, inputs=inputs, name="live_traffic")
    store.aliases.move(live_traffic_alias(turn), imported.key, f"imported from {traffic_db.name}")
    return imported


# -- what the steps do --


def _quantise(context: StepContext) -> Mapping[str, Any]:
    from noria.deployment.quantize import quantise_folder

    return quantise_folder(context.inputs["model"].content, context.content)


def _collect(context: StepContext) -> Mapping[str, Any]:
    from noria.deployment.candidates import candidate_json

    rows = {}
    for done, name in enumerate(context.config.names):
        context.report(done, len(context.config.names), "candidates", name)
        model = context.inputs[f"model_{name}"]
        agent = context.inputs.get(f"agent_{name}")
        evaluation = context.inputs[f"evaluation_{name}"].content
        rows[name] = candidate_json(model.content, evaluation, _agent_folder(agent, name)) | {"model": model.key}
    _write(context.content / "candidates.json", rows)
    _observe_speed(context)
    return {"candidates": len(rows), "items": max(len(row["scores"]["correct"]) for row in rows.values())}


def _agent_folder(agent: Artifact | None, name: str) -> Path | None:
    """Stage 7 keeps the traces of several models in one artifact, a folder each."""
    if agent is None:
        return None
    own = agent.content / name
    return own if own.is_dir() else agent.content


def _observe_speed(context: StepContext) -> None:
    """Tokens a second of every candidate, beside the content: a clock is no result."""
    from noria.deployment.candidates import decoding_speed

    speeds = {name: decoding_speed(context.inputs[f"model_{name}"].content) for name in context.config.names}
    _write(context.observed / "speed.json", speeds)


def _decide(context: StepContext) -> Mapping[str, Any]:
    from noria.deployment.candidates import families, read_candidate, verdict_json
    from noria.deployment.verdict import Rules, decide

    rows = _read(context.inputs["candidates"], "candidates.json")
    measured = {name: read_candidate(name, row) for name, row in rows.items()}
    incumbent = measured.pop("incumbent", None)
    rules = Rules.model_validate(context.config.model_dump())
    found = decide(list(measured.values()), incumbent, rules)
    body = verdict_json(found) | {"families": families(measured[found.chosen]), "rules": rules.model_dump()}
    _write(context.content / "verdict.json", body | {"incumbent": rows.get("incumbent", {}).get("model", "")})
    return {
        "decision": found.decision,
        "chosen": found.chosen,
        "candidates": len(measured),
        "reasons": list(found.reasons[1:4]),  # what `noria why verdict` shows; verdict.json has all of them
    }


def _release(context: StepContext) -> Mapping[str, Any]:
    from noria.deployment.cards import model_card, system_card

    found = _read(context.inputs["verdict"], "verdict.json")
    keep = found["decision"] != "release" and "model_incumbent" in context.inputs
    name = "incumbent" if keep else found["chosen"]
    source = context.inputs[f"model_{name}"]
    for file in (*MODEL_FILES, *CHAT_FILES):
        if file in MODEL_FILES or (source.content / file).is_file():
            shutil.copyfile(source.content / file, context.content / file)
    config: ReleaseConfig = context.config
    body = {"decision": found["decision"], "candidate": name, "model": source.key, "kept_incumbent": keep}
    _write(context.content / "release.json", body | {"retention": config.model_dump()})
    architecture = _read(source, "config.json")["architecture"]
    imported = (source.content / "tokenizer_config.json").is_file()
    (context.content / "model_card.md").write_text(model_card(body, found, architecture, imported))
    (context.content / "system_card.md").write_text(
        system_card(body, found, config.retention_days, config.traffic_bytes)
    )
    return body


def _traffic(context: StepContext) -> Mapping[str, Any]:
    from noria.deployment.gateway import GatewayOptions, background
    from noria.deployment.scripted_users import SOURCE, drive, write_scripts
    from noria.deployment.traffic import export_jsonl, read_replies

    config: TrafficConfig = context.config
    scripts = write_scripts(_asked_tasks(config), config.users, config.requests_each, config.seed)
    options = GatewayOptions(context.observed / "traffic.sqlite", port=0, source=SOURCE, rows=1)
    with background(context.inputs["release"].content, options) as address:
        exchanges = drive(
            *(address, options.name, scripts, _solved, config.max_tokens),
            lambda done, total: context.report(done, total, "scripted requests"),
        )
    rows = read_replies(options.traffic_db)
    export_jsonl(rows, context.content / "traffic.jsonl")
    refused = sum(exchange.status != 200 for exchange in exchanges)
    signals = [signal for row in rows for signal in row.signals]
    return {
        "source": SOURCE,
        "requests": len(exchanges),
        "refused": refused,
        **{f"consent_{tier}": sum(row.consent == tier for row in rows) for tier in ("none", "store", "train")},
        "redactions": sum(row.redactions for row in rows),
        **{name: signals.count(name) for name in ("thumbs_up", "thumbs_down")},
    }


def _asked_tasks(config: TrafficConfig) -> list[Any]:
    """What scripted users ask: training-split tasks, and a share of evaluation tasks that loop A has to find."""
    from noria.evals.tasks import FAMILIES, generate

    count = 8
    tasks = [task for name in sorted(FAMILIES) for task in generate(name, count, config.seed, "train")]
    heldout = [task for name in sorted(FAMILIES) for task in generate(name, 1, config.seed, "heldout")]
    wanted = round(config.heldout_share * len(tasks))
    return tasks + [heldout[index % len(heldout)] for index in range(wanted)]


def _solved(task: Any, reply: str) -> bool | None:
    """A scripted user knows the answer of its own task; code it can't run, so it can't tell."""
    from noria.types import split_thinking

    if not task.answer or task.domain == "code":
        return None
    return split_thinking(reply)[1].strip().lower() == task.answer.lower()


def _read(artifact: Artifact, name: str) -> Any:
    return json.loads((artifact.content / name).read_text())


def _write(path: Path, value: Mapping[str, Any] | Sequence[Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")
