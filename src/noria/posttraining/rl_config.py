"""The settings of reinforcement learning, and which of them contradict each other: refused when they are loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from noria.posttraining.advantages import Advantage
from noria.training import LoopConfig, Objective, PolicyLoss
from noria.training.compute import Precision, check_compiler
from noria.training.objectives import Importance, KlForm, PolicyForm
from noria.training.schedule import Schedule

Aggregation = Literal["token", "sequence", "constant"]
# Bounds of the ratio below and above 1, where none are given: DAPO's, and those of GSPO's own runs.
CLIPS: dict[PolicyForm, tuple[float, float]] = {"ppo": (0.2, 0.28), "gspo": (3e-4, 4e-4), "cispo": (0.2, 0.28)}


class RlConfig(BaseModel):
    """What GRPO and PPO share. A rollout step samples `prompts` x `group` replies and trains on them
    `minibatches` x `epochs` times."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(ge=1, description="rollout steps; each samples fresh rollouts and uses them once by default")
    prompts: int = Field(default=24, ge=1, description="P, tasks a step")
    group: int = Field(default=8, ge=1, description="G, samples a task")
    temperature: float = Field(default=1.0, gt=0, description="of sampling, and of the policy that is trained")
    learning_rate: float = Field(default=5e-4, gt=0, le=1)
    schedule: Schedule = "linear"
    muon: bool = Field(default=True, description="Muon for hidden matrices; false: AdamW for all")
    micro_batch_rows: int = Field(default=64, ge=1, description="rows a forward pass; changes memory, not the result")
    precision: Precision = Field(default="float32", description="of matrix products; sums stay fp32")
    weight_precision: Precision = Field(
        default="float32",
        description="of the weights while they are trained, their gradients and moments: see training/loop.py",
    )
    compile: bool = Field(
        default=False,
        description="torch.compile each block; needs a C++ compiler; a critic's own trunk computes as ever",
    )
    recompute_activations: bool = Field(
        default=False, description="activation checkpointing of the policy: less memory, a third more products"
    )

    loss: PolicyForm = Field(default="ppo", description="what is bounded: see training/objectives.py, PolicyLoss")
    clip_low: float | None = Field(default=None, gt=0, lt=1, description="bound below 1; by the loss if left out")
    clip_high: float | None = Field(default=None, gt=0, description="bound above 1; by the loss if left out")
    dual_clip: float | None = Field(default=None, gt=1, description="bound of a negative advantage's surrogate")
    ratio_cap: float = Field(default=5.0, gt=1, description="cap of the ratio in cispo")
    aggregation: Aggregation = Field(
        default="token",
        description="token: mean over all tokens of the step (DAPO); sequence: mean of the sequences' own means (the "
        "original GRPO; favours short right replies); constant: sum over prompts x group x max_tokens (Dr. GRPO)",
    )
    importance: Importance = Field(default="truncate", description="correction of the drift from sampler to trainer")
    importance_cap: float = Field(default=2.0, ge=1)
    importance_low: float = Field(default=0.5, gt=0, le=1, description="lower end of the band")
    stale_limit: float | None = Field(
        default=None, gt=0, description="leave out a sequence of negative advantage that the policy has left this far"
    )

    reference_kl: float = Field(default=0.0, ge=0, description="weight of the KL to the model before RL")
    kl_form: KlForm = Field(default="k3", description="its estimate: see training/objectives.py, reference_kl")
    kl_in: Literal["loss", "reward"] = "loss"

    overlong: Literal["keep", "mask", "penalty"] = Field(
        default="keep",
        description="mask: truncated replies teach nothing (they stay in the baseline); penalty: DAPO's soft penalty",
    )
    max_tokens: int | None = Field(default=None, ge=1, description="sampled tokens a reply may have, for the above")
    overlong_tokens: int | None = Field(default=None, ge=1, description="the last tokens over which the penalty grows")
    refill: int = Field(
        default=0, ge=0, description="rounds of further prompts that replace groups without variance (DAPO, bounded)"
    )

    minibatches: int = Field(default=1, ge=1, description="optimiser steps on one step's rollouts, a part each")
    epochs: int = Field(default=1, ge=1, description="passes over one step's rollouts")
    lag: int = Field(
        default=0, ge=0, description="rollout steps that sampling runs ahead: step s trains on samples of step s - lag"
    )

    @property
    def updates(self) -> int:
        """Optimiser steps a rollout step."""
        return self.minibatches * self.epochs

    def objective(self) -> Objective:
        low, high = CLIPS[self.loss]
        policy = PolicyLoss(
            clip_low=low if self.clip_low is None else self.clip_low,
            clip_high=high if self.clip_high is None else self.clip_high,
            importance_cap=self.importance_cap,
            form=self.loss,
            ratio_cap=self.ratio_cap,
            dual_clip=self.dual_clip,
            importance=self.importance,
            importance_low=self.importance_low,
            stale_limit=self.stale_limit,
        )
        return Objective(policy, kl=self.kl_form, temperature=self.temperature)

    def loop(self) -> LoopConfig:
        """Linear decay to zero after a few steps of warm-up, without weight decay, unless said otherwise."""
        return LoopConfig(
            steps=self.steps * self.updates,
            learning_rate=self.learning_rate,
            schedule=self.schedule,
            warmup_steps=min(5, self.steps * self.updates),
            weight_decay=0.0,
            micro_batch_rows=self.micro_batch_rows,
            muon=self.muon,
            precision=self.precision,
            weight_precision=self.weight_precision,
            compile=self.compile,
            recompute_activations=self.recompute_activations,
        )

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        problems = [message for is_wrong, message in self._contradictions() if is_wrong]
        if problems:
            raise ValueError("; ".join(problems))
        if self.compile:  # so that what is missing is told before anything runs
            check_compiler()
        return self

    def _contradictions(self) -> list[tuple[bool, str]]:
        limit, soft = self.max_tokens, self.overlong_tokens
        return [
            (
                self.loss == "gspo" and self.aggregation != "sequence",
                'loss gspo bounds the ratio of whole sequences: set aggregation = "sequence"',
            ),
            (
                self.loss != "ppo" and self.dual_clip is not None,
                f"dual_clip bounds the surrogate of loss ppo and has no meaning in {self.loss}: leave it out",
            ),
            (
                self.loss == "cispo" and (self.clip_low is not None or self.clip_high is not None),
                "cispo clips no gradient: leave out clip_low and clip_high, and set ratio_cap",
            ),
            (
                self.reference_kl > 0 and self.kl_in == "loss" and self.kl_form == "k1",
                'k1 as a loss has a gradient of zero in expectation: set kl_in = "reward", or kl_form = "k2" or "k3"',
            ),
            (
                self.aggregation == "constant" and limit is None,
                "aggregation constant divides by prompts x group x max_tokens: set max_tokens",
            ),
            (
                self.overlong == "penalty" and (limit is None or soft is None or soft > limit),
                "overlong penalty needs max_tokens, and overlong_tokens of at most that",
            ),
            (
                self.lag > 0 and self.importance == "none",
                f'lag = {self.lag} trains on samples of an older policy: set importance to "truncate" or "band"',
            ),
            (
                self.weight_precision == "bfloat16" and self.precision == "float32",
                'weight_precision = "bfloat16" needs precision = "bfloat16": set it, or leave both out',
            ),
            (
                self.minibatches > self.prompts * self.group,
                f"{self.minibatches} minibatches of {self.prompts} x {self.group} replies would be empty: lower it",
            ),
        ]


class GrpoConfig(RlConfig):
    """Group-relative policy optimisation; RLOO, Dr. GRPO, DAPO, GSPO, CISPO and MaxRL are settings of it."""

    group: int = Field(default=8, ge=2, description="G, samples a task")
    advantage: Advantage = Field(default="mean", description="see posttraining/advantages.py, group_advantages")

    def _contradictions(self) -> list[tuple[bool, str]]:
        negative = self.overlong == "penalty" or (self.kl_in == "reward" and self.reference_kl > 0)
        return [
            *super()._contradictions(),
            (
                self.advantage == "maxrl" and negative,
                "advantage maxrl divides by the mean reward, which a penalty in the reward can make negative: set "
                'overlong = "mask" and kl_in = "loss", or another advantage',
            ),
        ]


class PpoConfig(RlConfig):
    """PPO with a critic of its own trunk (posttraining/ppo.py)."""

    gamma: float = Field(default=1.0, gt=0, le=1, description="discount a token")
    gae_lambda: float = Field(
        default=1.0, ge=0, le=1, description="0.95 was considerably worse than 1 in R1's supplement (arXiv 2501.12948)"
    )
    value_clip: float = Field(default=0.2, gt=0, description="how far the critic may move in one rollout step")
    value_weight: float = Field(default=0.1, gt=0, description="of the critic's loss beside the policy's")
    critic_warmup: int = Field(default=0, ge=0, description="first rollout steps that train the critic alone")
    whiten: bool = Field(default=True, description="advantages of a step to mean 0, deviation 1, over its tokens")

    def objective(self) -> Objective:
        found = super().objective()
        return replace(found, value_clip=self.value_clip)

    def _contradictions(self) -> list[tuple[bool, str]]:
        return [
            *super()._contradictions(),
            (self.refill > 0, "refill replaces groups without variance, which PPO learns from too: set refill = 0"),
            (
                self.critic_warmup >= self.steps,
                f"critic_warmup = {self.critic_warmup} leaves no step of {self.steps} for the policy: lower it",
            ),
        ]
