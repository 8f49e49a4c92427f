"""Preference optimisation: DPO, cDPO, IPO and SimPO on pairs of replies, KTO on single ones called good or bad.

The reward is the log-ratio of policy and reference, so there is no sampling and no reward model; the losses and their
sources are in `training/preferences.py`. A pair is one row of a batch: chosen, then rejected, as two segments.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from noria.model import Transformer
from noria.posttraining.lora import as_reference, has_adapters
from noria.posttraining.sft import Example
from noria.training import Annotated, History, LoopConfig, Objective, PreferenceLoss, Progress, TokenBatch, train
from noria.training.compute import Precision
from noria.training.step import target_logprobs
from noria.types import seed_of

# beta where none is given. SimPO's is of a mean over tokens, so it is larger (arXiv 2405.14734, table 8: 2 to 10).
BETAS = {"dpo": 0.1, "ipo": 0.1, "simpo": 2.0, "kto": 0.1}
SIMPO_MARGIN = 1.0


@dataclass(frozen=True)
class Pair:
    """Two replies to one prompt; each `Example` holds the prompt too, with only the reply trained on."""

    chosen: Example
    rejected: Example


@dataclass(frozen=True)
class Judged:
    """One reply, good or bad, for KTO."""

    item: Example
    good: bool


class PreferenceConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    loss: Literal["dpo", "ipo", "simpo", "kto"] = "dpo"
    beta: float | None = Field(default=None, gt=0, description="how far the policy may leave the reference")
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5, description="share of wrong labels (cDPO)")
    margin: float | None = Field(default=None, ge=0, description="that SimPO's logits must exceed")
    normalise_lengths: bool = Field(
        default=False, description="means over tokens instead of sums; SimPO always does, dpo and ipo may"
    )
    undesirable_weight: float = Field(default=1.0, gt=0, description="of bad replies in KTO")
    chosen_ce: float = Field(default=0.0, ge=0, description="cross-entropy on the chosen beside it (arXiv 2404.19733)")
    epochs: int = Field(default=1, ge=1)
    batch: int = Field(default=32, ge=1, description="pairs (or replies) an optimiser step")
    learning_rate: float = Field(default=1e-4, gt=0, le=1)
    muon: bool = Field(default=True, description="Muon for hidden matrices; false: AdamW for all")
    micro_batch_rows: int = Field(default=16, ge=1, description="rows a forward pass; changes memory, not the result")
    precision: Precision = "float32"

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        if self.label_smoothing and self.loss != "dpo":
            raise ValueError(f'label_smoothing is cDPO\'s and has no meaning in {self.loss}: set loss = "dpo"')
        if self.margin is not None and self.loss != "simpo":
            raise ValueError(f"margin is SimPO's and has no meaning in {self.loss}: leave it out")
        if self.loss == "kto" and (self.normalise_lengths or self.chosen_ce):
            raise ValueError("KTO judges whole replies: leave out normalise_lengths and chosen_ce")
        if self.loss == "kto" and self.batch < 2:
            raise ValueError("KTO's reference point needs replies to mismatch: set batch to at least 2")
        return self

    def objective(self) -> Objective:
        preference = PreferenceLoss(
            form=self.loss,
            beta=BETAS[self.loss] if self.beta is None else self.beta,
            label_smoothing=self.label_smoothing,
            margin=SIMPO_MARGIN if self.margin is None else self.margin,
            undesirable_weight=self.undesirable_weight,
        )
        return Objective(preference=preference)


def prefer(
    model: Transformer,
    data: Sequence[Pair] | Sequence[Judged],
    config: PreferenceConfig,
    pad: int,
    seed: int,
    progress: Progress | None = None,
    reference: Transformer | None = None,
) -> History:
    """Train `model` in place. Every step's metrics hold chosen_logprob and rejected_logprob, the rewards
    beta log(pi/ref) of both, and the accuracy of the margin: a loss may fall while both log-probabilities do.

    `reference` is a frozen copy of the model before training. A model with adapters needs none: it is its own with the
    adapters off. Raises ValueError where one is missing, or the data are not what the loss takes.
    """
    wanted = Judged if config.loss == "kto" else Pair
    if not data or not all(isinstance(item, wanted) for item in data):
        raise ValueError(f"loss {config.loss} trains on a sequence of {wanted.__name__}, at least one")
    objective = config.objective()
    if objective.preference.needs_reference and reference is None and not has_adapters(model):
        raise ValueError(f"loss {config.loss} compares with a reference: give a frozen copy of the model")
    steps = preference_steps(len(data), config, seed)

    def annotate(step: int) -> Annotated:
        chosen = [data[index] for index in steps[step]]
        if config.loss == "kto":
            judged = [item for item in chosen if isinstance(item, Judged)]
            batch = judged_batch(judged, pad)
            return Annotated(*_with_reference_point(model, batch, judged, reference, pad))
        batch = pair_batch(
            [item for item in chosen if isinstance(item, Pair)],
            pad,
            normalise=config.normalise_lengths or config.loss == "simpo",
            chosen_ce=config.chosen_ce,
        )
        if not objective.preference.needs_reference:
            return Annotated(batch)
        return Annotated(replace(batch, reference_logprob=reference_logprobs(model, batch, reference)))

    loop = pairwise_loop(
        len(steps), config.learning_rate, config.micro_batch_rows, config.muon, precision=config.precision
    )
    return train(model, annotate, loop, progress, objective)


def preference_steps(count: int, config: PreferenceConfig, seed: int) -> list[list[int]]:
    """Which data each optimiser step takes, every epoch reshuffled. KTO's last step is never of one alone."""
    steps: list[list[int]] = []
    for epoch in range(config.epochs):
        steps += shuffled_steps(count, config.batch, seed_of("preference", seed, epoch))
        if config.loss == "kto" and len(steps[-1]) == 1 and len(steps) > 1:
            last = steps.pop()
            steps[-1] += last
    return steps


def shuffled_steps(count: int, batch: int, seed: int) -> list[list[int]]:
    """One epoch: the indices of `count` data in an order of the seed's, `batch` a step and the rest in the last."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return [order[start : start + batch] for start in range(0, count, batch)]


def pairwise_loop(
    steps: int, learning_rate: float, micro_batch_rows: int, muon: bool, precision: Precision = "float32"
) -> LoopConfig:
    """Linear decay to zero after a tenth of the steps, without weight decay."""
    return LoopConfig(
        steps=steps,
        learning_rate=learning_rate,
        schedule="linear",
        warmup_steps=max(1, steps // 10),
        weight_decay=0.0,
        micro_batch_rows=micro_batch_rows,
        muon=muon,
        precision=precision,
    )


def pair_batch(pairs: Sequence[Pair], pad: int, normalise: bool = False, chosen_ce: float = 0.0) -> TokenBatch:
    """One row a pair, shortest first: w_pair is +1 on the chosen reply's tokens and -1 on the rejected one's, over
    their numbers where lengths are normalised."""
    ordered = sorted(pairs, key=lambda pair: len(pair.chosen.token_ids) + len(pair.rejected.token_ids))
    tokens_BT, segment_BT, trained_BT = lay_out_pairs([(pair.chosen, pair.rejected) for pair in ordered], pad)
    w_pair = torch.zeros(trained_BT.shape)
    for segment, sign in ((0, 1.0), (1, -1.0)):
        mine_BT = trained_BT & (segment_BT == segment)
        count_B1 = mine_BT.sum(1, keepdim=True).clamp_min(1).float()
        w_pair += sign * mine_BT.float() / (count_B1 if normalise else 1.0)
    w_ce = chosen_ce * (trained_BT & (segment_BT == 0)).float()
    return TokenBatch(tokens_BT, w_ce[:, 1:], segment_BT, w_pair=w_pair[:, 1:])


def judged_batch(judged: Sequence[Judged], pad: int) -> TokenBatch:
    """One row a reply, in order: w_pair is +1 on the tokens of a good one and -1 on those of a bad one."""
    tokens_BT, segment_BT, trained_BT = lay_out_pairs([(entry.item,) for entry in judged], pad)
    sign_B1 = torch.tensor([[1.0 if entry.good else -1.0] for entry in judged])
    w_pair = (trained_BT * sign_B1)[:, 1:]
    return TokenBatch(tokens_BT, torch.zeros(w_pair.shape), segment_BT, w_pair=w_pair)


def lay_out_pairs(
    rows: Sequence[Sequence[Example]], pad: int, extra: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(tokens, segments, whether a token is trained on), (B, T) each: the examples of a row one after another, then
    padding of segment -1, at least `extra` of it. No example's first token is trained on."""
    longest = max(sum(len(item.token_ids) for item in row) for row in rows) + extra
    tokens_BT = torch.full((len(rows), longest), pad, dtype=torch.long)
    segment_BT = torch.full((len(rows), longest), -1, dtype=torch.long)
    trained_BT = torch.zeros(len(rows), longest, dtype=torch.bool)
    for index, row in enumerate(rows):
        start = 0
        for segment, item in enumerate(row):
            stop = start + len(item.token_ids)
            tokens_BT[index, start:stop] = torch.tensor(item.token_ids)
            segment_BT[index, start:stop] = segment
            trained_BT[index, start + 1 : stop] = torch.tensor(item.trained[1:], dtype=torch.bool)
            start = stop
    return tokens_BT, segment_BT, trained_BT


def reference_logprobs(model: Transformer, batch: TokenBatch, reference: Transformer | None) -> torch.Tensor:
    """(B, T - 1) of the reference; without one, of `model` with its adapters off."""
    with as_reference(model, reference) as frozen:
        return target_logprobs(frozen, batch)


def mismatched(judged: Sequence[Judged]) -> list[Judged]:
    """Each prompt with the next entry's reply: what KTO estimates the distance to the reference from."""
    replies = [entry.item for entry in [*judged[1:], judged[0]]]
    found = []
    for entry, other in zip(judged, replies, strict=True):
        prompt, start = entry.item.trained.index(True), other.trained.index(True)
        ids = (*entry.item.token_ids[:prompt], *other.token_ids[start:])
        found.append(Judged(Example(ids, (*entry.item.trained[:prompt], *other.trained[start:])), True))
    return found


def _with_reference_point(
    model: Transformer, batch: TokenBatch, judged: Sequence[Judged], reference: Transformer | None, pad: int
) -> tuple[TokenBatch, dict[str, float]]:
    """z = max(0, mean log pi/ref of mismatched replies), of the policy as it is now (arXiv 2402.01306, section 4.1)."""
    other = judged_batch(mismatched(judged), pad)
    ratio_BT = target_logprobs(model, other) - reference_logprobs(model, other, reference)
    point = max(0.0, ratio_BT.sum(1).mean().item())
    point_B1 = torch.full((len(judged), 1), point)
    logprobs = reference_logprobs(model, batch, reference)
    return replace(batch, reference_logprob=logprobs, reference_point=point_B1), {"reference_point": point}
