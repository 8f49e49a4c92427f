"""Stage 4, pretraining: shards and a plan become a base model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from noria.artifacts import Artifact, Numerics, Step, StepContext
from noria.stages.precision import Computing, Precision, bytes_per_weight, precision_for

if TYPE_CHECKING:
    from noria.planning import TrainingMemory
    from noria.training import LoopConfig

STAGE = "s4_pretraining"


class Choices(BaseModel):
    """What the plan does not choose, and what a user may set against it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float | Literal["auto"] = Field(
        default="auto", description='peak learning rate, 0 < rate <= 1; "auto" takes the plan\'s'
    )
    weight_decay: float = Field(default=0.1, ge=0, le=1)
    micro_batch_rows: int = Field(default=16, ge=1, description="rows a forward pass")
    heldout_rows: int = Field(default=32, ge=1, description="held-out rows a source that the final loss is measured on")

    @field_validator("learning_rate")
    @classmethod
    def _check_rate(cls, value: float | Literal["auto"]) -> float | Literal["auto"]:
        if value != "auto" and not 0 < value <= 1:
            raise ValueError("must lie in (0, 1]")
        return value


class Speed(Computing):
    muon: bool = Field(default=True, description="Muon for hidden matrices; false: AdamW for all")


class Config(Choices, Speed):
    """[pretraining]."""

    processes: int = Field(
        default=1, ge=1, description="ranks on this machine that share each step; part of the identity as world_size"
    )

    @model_validator(mode="after")
    def _check_processes(self) -> Self:
        if self.weight_precision == "bfloat16" and self.processes > 1:
            raise ValueError('weight_precision = "bfloat16" trains in one process: set processes = 1, or leave it out')
        return self


class Identity(Choices):
    seed: int = 0


class SpeedIdentity(Speed, Identity):
    """Where any setting of speed is not the default: so a recipe without them keeps its key."""

    precision: Precision


def base_model(config: Config, plan: Step, shards: Step, tokenizer: Step, seed: int, threads: int) -> Step:
    """content: the model folder, history.json (a row a step) and heldout.json (loss and bits per byte by source)."""
    asked = config.model_dump(include=set(Speed.model_fields))
    speed = Speed.model_validate({**asked, "precision": precision_for(config.precision)})
    choices = {**config.model_dump(include=set(Choices.model_fields)), "seed": seed}
    return Step(
        name="base_model",
        stage=STAGE,
        kind="model",
        version=1,
        config=Identity(**choices) if speed == Speed() else SpeedIdentity(**choices, **speed.model_dump()),
        inputs={"plan": plan, "shards": shards, "tokenizer": tokenizer},
        run=_run,
        numerics=Numerics(speed.precision, threads, config.processes, speed.compile),
    )


def predicted_memory(base_model: Step, plan: Artifact) -> TrainingMemory | None:
    """What the tensors of the training take, as it is configured; None on several processes, which share them.

    An upper bound where activations are kept in bf16 or made again: these are counted as kept in fp32.
    """
    from noria.model import ModelConfig
    from noria.planning import training_bytes

    config: Identity = base_model.config  # type: ignore[assignment]
    if base_model.numerics is None or base_model.numerics.world_size > 1:
        return None
    speed = config if isinstance(config, SpeedIdentity) else Speed()
    decided = json.loads((plan.content / "plan.json").read_text(encoding="utf-8"))
    rows = min(config.micro_batch_rows, decided["batch_tokens"] // decided["sequence_length"])
    size = bytes_per_weight(speed.weight_precision)
    return training_bytes(ModelConfig(**decided["model"]), rows, bytes_per_weight=size, muon=speed.muon)


def _run(context: StepContext) -> Mapping[str, Any]:
    from noria.data.shards import TokenStream
    from noria.data.tokenizer import Tokenizer
    from noria.model import ModelConfig, Transformer, save_model
    from noria.stages.training_progress import training_progress
    from noria.training.heldout import Heldout
    from noria.training.pretraining import pretrain
    from noria.training.worker import Job, layout_for, pretrain_together

    config: Identity = context.config
    shards, tokenizer_json = context.inputs["shards"].content, context.inputs["tokenizer"].content / "tokenizer.json"
    plan = json.loads((context.inputs["plan"].content / "plan.json").read_text())
    weights = json.loads((shards / "shards.json").read_text())["weights"]
    length = plan["sequence_length"]
    stream = TokenStream(shards, weights, length, plan["batch_tokens"] // length, config.seed)
    stream.refuse_other_tokenizer(Tokenizer.load(tokenizer_json).digest)
    loop = _loop(config, plan)
    model = Transformer(ModelConfig(**plan["model"]), seed=config.seed)
    progress = training_progress(context, plan["batch_tokens"], "tokens")
    assert context.numerics is not None
    if context.numerics.world_size == 1:
        history = pretrain(model, stream, loop, progress)
    else:
        job = Job(
            model=model.config,
            loop=loop,
            shards=shards,
            weights=weights,
            sequence_length=length,
            batch_rows=stream.batch_rows,
            seed=config.seed,
            folder=context.progress,
            layout=layout_for(model.config),
            threads=context.numerics.threads,
        )
        state, history = pretrain_together(job, context.numerics.world_size, progress)
        model.load_state_dict(state)
        model.eval()
    save_model(context.content, model, tokenizer_json)
    heldout = Heldout.load(shards, weights, length, config.heldout_rows, Tokenizer.bos)
    losses = heldout.losses(model)
    measured = {
        "loss": heldout.mean(losses),
        "loss_by_source": losses,
        "bits_per_byte": heldout.bits_per_byte(losses),
        "tokens_by_source": {name: source.tokens for name, source in heldout.sources.items()},
        "predicted": plan["predicted_loss"],
        "epochs": stream.epochs(loop.steps),
    }
    (context.content / "heldout.json").write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n")
    (context.content / "history.json").write_text(json.dumps(history) + "\n")
    return {
        "parameters": model.config.parameters(),
        "tokens": loop.steps * plan["batch_tokens"],
        "loss": measured["loss"],
        "predicted_low": plan["predicted_loss"]["low"],
        "predicted_high": plan["predicted_loss"]["high"],
    }


def _loop(config: Identity, plan: Mapping[str, Any]) -> LoopConfig:
    from noria.training import GuardConfig, LoopConfig

    return LoopConfig(
        steps=plan["steps"],
        learning_rate=plan["learning_rate"] if config.learning_rate == "auto" else config.learning_rate,
        schedule=plan["schedule"]["name"],
        warmup_steps=plan["schedule"]["warmup_steps"],
        decay_share=plan["schedule"]["decay_share"],
        weight_decay=config.weight_decay,
        micro_batch_rows=config.micro_batch_rows,
        **config.model_dump(include=set(Speed.model_fields)),
        guard=GuardConfig(spikes=True, make_up=True),
    )
