"""Stage 7, agent harness: demonstrations with real tools, a cold start on them, RL in the environment, the measurement.

The demonstrations are biased on purpose: they often stop half-way and guess. The cold start learns that; what RL moves
away from it is the effect that `agent_evaluation` measures on held-out tasks, with every trace on disk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from noria.artifacts import Artifact, Numerics, Step, StepContext
from noria.types import Score, Task, Trace, digest, seed_of

if TYPE_CHECKING:
    from noria.data.tokenizer import Tokenizer
    from noria.harness import Arena, Recorded

STAGE = "s7_agent_harness"
HARNESS = Path(__file__).parent.parent / "harness"
SPLITS = ("heldout", "heldout_keys", "heldout_hops")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Config(_Section):
    """[harness] of a recipe."""

    program: str = Field(default="files", description="harness program: a name that comes with noria, or a .py file")
    bootstrap: bool = Field(
        default=False, description="a snapshot of the workspace in the first prompt: harness/bootstrap.py"
    )
    turns: int = Field(default=5, ge=1, le=64, description="model calls a trace")
    tokens_per_turn: int = Field(default=12, ge=2, le=4096, description="sampled tokens a model call")
    demonstrations: int = Field(default=800, ge=1, description="demonstrated tasks of the cold start")
    completes: float = Field(
        default=0.4, ge=0, le=1, description="share of demonstrations that go on at each further hop; the rest guess"
    )
    rehearsal: int = Field(
        default=400, ge=0, description="single-turn replies of before mixed in, so that earlier skills stay"
    )
    sft_epochs: int = Field(default=2, ge=1, description="passes over demonstrations and rehearsal")
    sft_batch_tokens: int = Field(default=4096, ge=64, description="packed tokens an optimiser step of the cold start")
    sft_learning_rate: float = Field(default=2e-3, gt=0, le=1)
    train_tasks: int = Field(
        default=600, ge=1, description="tasks that RL draws from; drawn apart from the demonstrations"
    )
    rl_steps: int = Field(default=30, ge=1, description="optimiser steps, each on fresh rollouts")
    rl_prompts: int = Field(default=16, ge=1, description="tasks a step")
    rl_group: int = Field(default=8, ge=2, description="rollouts a task")
    rl_learning_rate: float = Field(default=5e-4, gt=0, le=1)
    rl_temperature: float = Field(default=1.0, gt=0, le=10)
    rl_reference_kl: float = Field(default=0.0, ge=0, description="weight of the KL to the cold start")
    heldout_tasks: int = Field(default=200, ge=2, description="tasks of each held-out split: chains, keys, hops")

    @field_validator("program")
    @classmethod
    def _program_exists(cls, value: str) -> str:
        if not _program_path(value).is_file():
            known = sorted(path.stem for path in (HARNESS / "programs").glob("*.py") if path.stem != "__init__")
            raise ValueError(f"no harness program {value!r}: give a .py file, or one of {', '.join(known)}")
        return value


class _Rollout(_Section):
    """What every rollout of this stage depends on; part of each step's identity."""

    program: str = Field(description="its name; with the bootstrap it ends as the names of such programs do")
    program_source: str
    environment: str = Field(description="digest of the environment's generator, grader and tools")
    turns: int
    tokens_per_turn: int
    seed: int


class _Demonstrations(_Rollout):
    demonstrations: int
    completes: float


class _ColdStart(_Section):
    rehearsal: int
    epochs: int
    batch_tokens: int
    learning_rate: float
    seed: int


class _Rl(_Rollout):
    train_tasks: int
    steps: int
    prompts: int
    group: int
    learning_rate: float
    temperature: float
    reference_kl: float


class _Evaluation(_Rollout):
    heldout_tasks: int
    order: tuple[str, ...] = Field(description="names of the models; each is compared with the one before it")


def agent_demonstrations(config: Config, tokenizer: Step | Artifact, seed: int = 0) -> Step:
    """Traces of a scripted, hasty policy with real tools: content/{tasks,traces,scores}.jsonl, program.py."""
    identity = _Demonstrations(
        **_rollout_identity(config, seed), demonstrations=config.demonstrations, completes=config.completes
    )
    inputs = {"tokenizer": tokenizer}
    return Step("agent_demonstrations", STAGE, "traces", 1, identity, _demonstrate, inputs)


def agent_cold_start(
    config: Config,
    model: Step | Artifact,
    demonstrations: Step | Artifact,
    rejection: Step | Artifact,
    tasks: Step | Artifact,
    seed: int = 0,
    threads: int = 1,
) -> Step:
    """`model` fine-tuned on the demonstrations; a model artifact. It rehearses what stage 5 taught it last: replies of
    its own that rejection sampling kept (`rejection`), and the helpful and safety demonstrations of `tasks`."""
    identity = _ColdStart(
        rehearsal=config.rehearsal,
        epochs=config.sft_epochs,
        batch_tokens=config.sft_batch_tokens,
        learning_rate=config.sft_learning_rate,
        seed=seed,
    )
    inputs = {"model": model, "demonstrations": demonstrations, "rejection": rejection, "tasks": tasks}
    return Step("agent_cold_start", STAGE, "model", 2, identity, _cold_start, inputs, Numerics(threads=threads))


def agent_rl(config: Config, model: Step | Artifact, seed: int = 0, threads: int = 1) -> Step:
    """`model` improved by GRPO on rollouts with real tools; a model artifact, with history.json beside the weights.

    observed/traces keeps every rollout with its step, reward and components: `noria traces view agent_rl`.
    """
    identity = _Rl(
        **_rollout_identity(config, seed),
        train_tasks=config.train_tasks,
        steps=config.rl_steps,
        prompts=config.rl_prompts,
        group=config.rl_group,
        learning_rate=config.rl_learning_rate,
        temperature=config.rl_temperature,
        reference_kl=config.rl_reference_kl,
    )
    return Step("agent_rl", STAGE, "model", 1, identity, _rl, {"model": model}, Numerics(threads=threads))


def agent_evaluation(
    config: Config,
    models: Mapping[str, Step | Artifact],
    seed: int = 0,
    threads: int = 1,
    name: str = "agent_evaluation",
) -> Step:
    """`models`, in order (cold start, RL), on the same held-out tasks, greedily.

    content/<model>/<split>/{tasks,traces,scores}.jsonl and content/results.json: success with Wilson intervals, paired
    differences, how many traces replay exactly and regrade alike.
    """
    identity = _Evaluation(**_rollout_identity(config, seed), heldout_tasks=config.heldout_tasks, order=tuple(models))
    return Step(name, STAGE, "agent_evaluation", 1, identity, _evaluate, dict(models), Numerics(threads=threads))


# -- the steps --


def _demonstrate(context: StepContext) -> Mapping[str, Any]:
    from noria.data.tokenizer import Tokenizer
    from noria.harness import ScriptedSampler, save
    from noria.harness.environments import lookup

    config: _Demonstrations = context.config
    tokenizer = Tokenizer.load(context.inputs["tokenizer"].content / "tokenizer.json")
    tasks = _tasks(config.demonstrations, config.seed, "train", "demonstrations")
    context.report(0, len(tasks), "tasks")
    with _arena(config, tokenizer) as arena:
        sampler = ScriptedSampler(tokenizer, lookup.hasty(config.completes))
        recorded = arena.record(tasks, config.seed, sampler, context=1 << 20)
    save(context.content, recorded)
    (context.content / "program.py").write_text(config.program_source, encoding="utf-8")
    context.report(len(tasks), len(tasks), "tasks")
    return {"traces": len(tasks), "success": _success(recorded.scores), "tool_calls": _mean(recorded, "tool_calls")}


def _cold_start(context: StepContext) -> Mapping[str, Any]:
    from noria.harness import load
    from noria.posttraining.sft import SftConfig, example, fine_tune, trace_examples
    from noria.posttraining.task_set import evenly, read_demonstrations
    from noria.stages.model_steps import TrainedModel

    config: _ColdStart = context.config
    trained = TrainedModel(context)
    demonstrated = load(context.inputs["demonstrations"].content)
    examples = [item for trace in demonstrated.traces for item in trace_examples(trace)]
    kept = read_demonstrations(context.inputs["rejection"].content / "kept.jsonl")
    general = read_demonstrations(context.inputs["tasks"].content / "general.jsonl")
    for task, reply in evenly([*kept, *general], config.rehearsal, seed_of(config.seed, "rehearsal")):
        examples.append(example(trained.tokenizer, task.messages, reply))
    settings = SftConfig(epochs=config.epochs, batch_tokens=config.batch_tokens, learning_rate=config.learning_rate)
    history = fine_tune(trained.model, examples, settings, trained.tokenizer.pad, config.seed, trained.progress)
    tokens = sum(len(item.token_ids) for item in examples)
    return trained.publish(history, {"examples": len(examples), "tokens": tokens, "loss": history[-1]["loss_ce"]})


def _rl(context: StepContext) -> Mapping[str, Any]:
    from noria.harness.traces import StepTraces
    from noria.inference import Engine
    from noria.posttraining.grpo import GrpoConfig, improve
    from noria.stages.model_steps import TrainedModel

    config: _Rl = context.config
    kept = StepTraces(context.progress / "traces")

    def monitor(step: int, tasks: Sequence[Task], traces: Sequence[Trace], scores: Sequence[Score]) -> dict[str, float]:
        kept.keep(step, tasks, traces, scores)
        return _monitor(tasks, traces, scores)

    trained = TrainedModel(context)
    model, tokenizer = trained.model, trained.tokenizer
    engine = Engine(model, tokenizer.end)
    settings = GrpoConfig(
        steps=config.steps,
        prompts=config.prompts,
        group=config.group,
        temperature=config.temperature,
        learning_rate=config.learning_rate,
        reference_kl=config.reference_kl,
    )
    with _arena(config, tokenizer) as arena:
        history = improve(
            model,
            _tasks(config.train_tasks, config.seed, "train", "rl"),
            lambda tasks, seeds: arena.roll(tasks, seeds, engine, model.config.context, config.temperature),
            arena.grader.grade,
            settings,
            tokenizer.pad,
            config.seed,
            trained.progress,
            monitor,
            trained.copy() if config.reference_kl else None,
        )
    kept.finish(context.observed / "traces")
    tenth = max(1, len(history) // 10)
    metrics = {
        "success_first": sum(step["success"] for step in history[:tenth]) / tenth,
        "success_last": sum(step["success"] for step in history[-tenth:]) / tenth,
        "invalid_calls_last": history[-1]["invalid_calls"],
    }
    return trained.publish(history, metrics)


def _evaluate(context: StepContext) -> Mapping[str, Any]:
    from noria.harness import regrade, replay, save
    from noria.inference import Engine
    from noria.stages.model_steps import TrainedModel

    config: _Evaluation = context.config
    results: dict[str, Any] = {"models": {}, "differences": []}
    outcomes: dict[tuple[str, str], dict[str, float]] = {}
    total, done = len(config.order) * len(SPLITS), 0
    for name in config.order:
        trained = TrainedModel(context, name)
        model, tokenizer = trained.model, trained.tokenizer
        with _arena(config, tokenizer) as arena:
            for split in SPLITS:
                context.report(done, total, "splits", f"{name} {split}")
                tasks = _tasks(config.heldout_tasks, config.seed, split, "evaluation")
                engine = Engine(model, tokenizer.end)
                recorded = arena.record(tasks, config.seed, engine, model.config.context, 0.0)
                save(context.content / name / split, recorded)
                budget = arena.budget(model.config.context)
                for task, trace in zip(recorded.tasks, recorded.traces, strict=True):
                    replay(task, trace, tokenizer, arena.program, budget)
                if regrade(recorded, arena.grader) != recorded:
                    raise ValueError(f"{name}, {split}: grading the recorded traces again gave other scores")
                outcomes[name, split] = {
                    task.id: score.components["outcome"]
                    for task, score in zip(recorded.tasks, recorded.scores, strict=True)
                    if score.status == "graded"
                }
                results["models"].setdefault(name, {})[split] = _summary(recorded)
                done += 1
    (context.content / "program.py").write_text(config.program_source, encoding="utf-8")
    results["differences"] = _differences(config.order, outcomes)
    (context.content / "results.json").write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    return {
        f"{name}_{split}_success": results["models"][name][split]["success"]["estimate"]
        for name in config.order
        for split in SPLITS
    }


# -- what they share --


def _arena(config: _Rollout, tokenizer: Tokenizer) -> Arena:
    from noria.harness import FILE_TOOLS, Arena
    from noria.harness.bootstrap import program_named
    from noria.harness.environments.lookup import lookup_grader

    program = program_named(config.program, config.program_source)
    return Arena(program, tokenizer, lookup_grader(), FILE_TOOLS, config.turns, config.tokens_per_turn)


def _tasks(count: int, seed: int, split: Any, purpose: str) -> list[Task]:
    from noria.harness.environments import lookup
    from noria.harness.environments.lookup import lookup_grader

    return lookup.generate(count, seed_of(seed, purpose), split, lookup_grader().ref)


def _monitor(tasks: Sequence[Task], traces: Sequence[Trace], scores: Sequence[Score]) -> dict[str, float]:
    return {
        "success": _success(scores),
        "invalid_calls": sum(trace.facts["invalid_calls"] for trace in traces) / len(traces),
        "tool_calls": sum(trace.facts["tool_calls"] for trace in traces) / len(traces),
    }


def _success(scores: Sequence[Score]) -> float:
    graded = [score.components["outcome"] for score in scores if score.status == "graded"]
    return sum(graded) / len(graded) if graded else 0.0


def _mean(recorded: Recorded, fact: str) -> float:
    return sum(trace.facts[fact] for trace in recorded.traces) / len(recorded.traces)


def _summary(recorded: Recorded) -> dict[str, Any]:
    from noria.evals.statistics import wilson

    graded = [score for score in recorded.scores if score.status == "graded"]
    right = sum(score.components["outcome"] for score in graded)
    return {
        "success": wilson(int(right), len(graded)).as_json(),
        "failed_gradings": len(recorded.scores) - len(graded),
        "tool_calls": _mean(recorded, "tool_calls"),
        "invalid_calls": _mean(recorded, "invalid_calls"),
        "replayed": len(recorded.traces),
    }


def _differences(order: Sequence[str], outcomes: Mapping[tuple[str, str], Mapping[str, float]]) -> list[dict[str, Any]]:
    """Paired over the tasks that were graded for both models."""
    from noria.evals.statistics import paired_difference

    rows = []
    for old, new in pairwise(order):
        for split in SPLITS:
            before, after = outcomes[old, split], outcomes[new, split]
            both = [task for task in after if task in before]
            change = paired_difference([after[task] for task in both], [before[task] for task in both])
            rows.append({"model": new, "than": old, "split": split, "success": change.as_json()})
    return rows


def _rollout_identity(config: Config, seed: int) -> dict[str, Any]:
    """A switch that is off leaves no mark in it: what is made without the bootstrap does not depend on it."""
    names = ["environments/lookup.py", "environments/environment.py", "trace_grader.py", "reward.py", "tools/files.py"]
    program = Path(config.program).stem
    if config.bootstrap:
        from noria.harness.bootstrap import MARK

        names.append("bootstrap.py")
        program += MARK
    return {
        "program": program,
        "program_source": _program_path(config.program).read_text(encoding="utf-8"),
        "environment": digest(*((HARNESS / name).read_text(encoding="utf-8") for name in names)),
        "turns": config.turns,
        "tokens_per_turn": config.tokens_per_turn,
        "seed": seed,
    }


def _program_path(program: str) -> Path:
    return Path(program) if program.endswith(".py") else HARNESS / "programs" / f"{program}.py"
