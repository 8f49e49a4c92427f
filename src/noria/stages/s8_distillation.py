"""Stage 8, distillation: a student of at most a third of the teacher, from its traces and logits, and its control."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from noria.artifacts import Numerics, Step, StepContext

STAGE = "s8_distillation"


class Config(BaseModel):
    """[distillation]"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    student_width: int = Field(
        default=64, ge=16, description="the student's width; heads and feed-forward shrink with it"
    )
    student_layers: int = Field(default=4, ge=1)
    largest_share: float = Field(
        default=1 / 3, gt=0, le=1, description="refuse a student above this share of the teacher"
    )
    tasks: int = Field(default=250, ge=1, description="training tasks a family that the teacher answers")
    only_correct: bool = Field(default=True, description="keep the teacher's correct replies; false: all of them")
    draws: int = Field(default=12, ge=1, description="ids drawn from the teacher's distribution a token")
    teacher_weight: float = Field(default=0.7, ge=0, le=1, description="share of the loss that follows the logits")
    epochs: int = Field(default=6, ge=1, description="passes over the teacher's traces")
    batch_tokens: int = Field(default=4096, ge=256)
    learning_rate: float = Field(default=4e-3, gt=0, le=1)
    pretraining_steps: int = Field(
        default=60, ge=1, description="optimiser steps on the shards before, for both students"
    )
    max_tokens: int = Field(default=72, ge=8, description="sampled tokens a reply")


class Identity(Config):
    seed: int


class StudentIdentity(Identity):
    arm: Literal["distilled", "control"]


def teacher_traces(config: Config, teacher: Step, tasks: Step, seed: int, threads: int) -> Step:
    """content: traces.jsonl, draws.npy: the teacher's correct replies to training tasks and draws from its logits."""
    return Step(
        "teacher_traces",
        STAGE,
        "traces",
        1,
        Identity(**config.model_dump(), seed=seed),
        _teacher_traces,
        {"model": teacher, "tasks": tasks},
        Numerics(threads=threads),
    )


def student_base(config: Config, teacher: Step, plan: Step, shards: Step, seed: int, threads: int) -> Step:
    """The student's shape, pretrained a little on the same shards; both students start from it."""
    return Step(
        "student_base",
        STAGE,
        "model",
        1,
        Identity(**config.model_dump(), seed=seed),
        _student_base,
        {"model": teacher, "plan": plan, "shards": shards},
        Numerics(threads=threads),
    )


def student(
    config: Config, arm: Literal["distilled", "control"], base: Step, traces: Step, tasks: Step, seed: int, threads: int
) -> Step:
    """`distilled`: the teacher's traces and logits. `control`: no teacher; demonstrations, for about as many tokens."""
    return Step(
        "student" if arm == "distilled" else "student_control",
        STAGE,
        "model",
        1,
        StudentIdentity(**config.model_dump(), seed=seed, arm=arm),
        _student,
        {"model": base, "traces": traces, "tasks": tasks},
        Numerics(threads=threads),
    )


def _teacher_traces(context: StepContext) -> Mapping[str, Any]:
    from noria.distillation import save_traces, teacher_draws
    from noria.posttraining import example
    from noria.posttraining.rejection import sample_and_keep
    from noria.posttraining.task_set import read_tasks
    from noria.stages.model_steps import TrainedModel, roller

    config: Identity = context.config
    teacher = TrainedModel(context)
    tasks = read_tasks(context.inputs["tasks"].content / "rl.jsonl")
    roll = roller(teacher.model, teacher.tokenizer, config.max_tokens, 0.7)
    kept, counts = sample_and_keep(
        tasks, roll, 1, config.tasks, config.seed, context.report, only_correct=config.only_correct
    )
    if not kept:
        raise ValueError(
            f"the teacher answered none of {sum(counts.values())} tasks correctly, so there is nothing to distil: "
            "train it further, or set distillation.only_correct = false"
        )
    examples = [example(teacher.tokenizer, task.messages, reply) for task, reply in kept]
    save_traces(context.content, examples, teacher_draws(teacher.model, examples, config.draws, config.seed))
    return {"traces": len(examples), **counts}


def _student_base(context: StepContext) -> Mapping[str, Any]:
    import json

    from noria.data.shards import TokenStream
    from noria.model import ModelConfig, Transformer, read_config, save_model
    from noria.stages.training_progress import training_progress
    from noria.training import LoopConfig
    from noria.training.pretraining import pretrain

    config: Identity = context.config
    folder = context.inputs["model"].content
    teacher, _ = read_config(folder)
    heads = max(1, config.student_width // teacher.head_width)
    shape = teacher.model_copy(
        update={
            "width": config.student_width,
            "layers": config.student_layers,
            "heads": heads,
            "kv_heads": max(1, heads // (teacher.heads // teacher.kv_heads)),
            "ffn_width": config.student_width * teacher.ffn_width // teacher.width,
        }
    )
    shape = ModelConfig(**shape.model_dump())
    if shape.parameters() > config.largest_share * teacher.parameters():
        raise ValueError(
            f"a student of {shape.parameters():,} parameters is more than {config.largest_share:.2f} of the teacher's "
            f"{teacher.parameters():,}: lower distillation.student_width or student_layers"
        )
    shards = context.inputs["shards"].content
    plan = json.loads((context.inputs["plan"].content / "plan.json").read_text())
    length = plan["sequence_length"]
    stream = TokenStream(
        shards,
        json.loads((shards / "shards.json").read_text())["weights"],
        length,
        plan["batch_tokens"] // length,
        config.seed,
    )
    loop = LoopConfig(
        steps=config.pretraining_steps,
        learning_rate=plan["learning_rate"],
        warmup_steps=max(1, config.pretraining_steps // 20),
        decay_share=0.2,
    )
    student = Transformer(shape, seed=config.seed)
    history = pretrain(student, stream, loop, training_progress(context, plan["batch_tokens"], "tokens"))
    save_model(context.content, student, folder / "tokenizer.json")
    return {"parameters": shape.parameters(), "teacher": teacher.parameters(), "loss": history[-1]["loss_ce"]}


def _student(context: StepContext) -> Mapping[str, Any]:
    from noria.distillation import distil, load_traces
    from noria.posttraining import SftConfig, example, fine_tune
    from noria.posttraining.task_set import read_demonstrations
    from noria.stages.model_steps import TrainedModel

    config: StudentIdentity = context.config
    trained = TrainedModel(context)
    settings = SftConfig(**config.model_dump(include=set(SftConfig.model_fields)))
    traces, draws = load_traces(context.inputs["traces"].content)
    pad = trained.tokenizer.pad
    if config.arm == "distilled":
        history = distil(
            trained.model, traces, draws, settings, config.teacher_weight, pad, config.seed, trained.progress
        )
        return trained.publish(history, {"examples": len(traces)})
    folder = context.inputs["tasks"].content
    shown = [*read_demonstrations(folder / "demonstrations.jsonl"), *read_demonstrations(folder / "general.jsonl")]
    examples = [example(trained.tokenizer, task.messages, reply) for task, reply in shown]
    budget = config.epochs * sum(len(item.token_ids) for item in traces)
    epochs = max(1, round(budget / sum(len(item.token_ids) for item in examples)))
    settings = settings.model_copy(update={"epochs": epochs})
    history = fine_tune(trained.model, examples, settings, pad, config.seed, trained.progress)
    return trained.publish(history, {"examples": len(examples), "epochs": epochs})
