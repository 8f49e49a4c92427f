"""A reward model: the language model's trunk with a scalar head at a reply's last token, trained on pairs.

Bradley-Terry with centring (`training/preferences.py`). Length is its classic confounder: pairs can be balanced before
training, so that longer is right as often as wrong, and what is reported says how far length alone would get.

B pairs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from noria.data.chat_tokenizer import ChatTokenizer
from noria.model import Transformer, load_model
from noria.model.folder import ModelFolderError, save_state
from noria.posttraining.lora import merged_state
from noria.posttraining.preference import Pair, lay_out_pairs, pairwise_loop, shuffled_steps
from noria.posttraining.sft import Example
from noria.training import Annotated, History, Objective, PreferenceLoss, Progress, TokenBatch, train
from noria.training.critic import attach_critic, critic_of, detach_critic, target_values
from noria.types import GraderRef, Score, Task, Trace, seed_of

HEAD = "reward_head.safetensors"
# Replies of a pair whose lengths differ by at most this share of the longer count as equally long.
MATCHED = 0.1


class RewardModelConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    margin: float = Field(default=0.0, ge=0, description="m, by which the chosen must score higher")
    centring: float = Field(default=0.01, ge=0, description="weight of (r_c + r_r)^2, which keeps scores around 0")
    balance_lengths: bool = Field(default=True, description="drop pairs until longer is chosen as often as rejected")
    epochs: int = Field(default=1, ge=1, description="more than one overfits soon (InstructGPT, arXiv 2203.02155)")
    batch_pairs: int = Field(default=32, ge=1, description="pairs an optimiser step")
    learning_rate: float = Field(default=1e-3, gt=0, le=1)
    muon: bool = Field(default=True, description="Muon for hidden matrices; false: AdamW for all")
    micro_batch_rows: int = Field(default=16, ge=1, description="pairs a forward pass; changes memory, not the result")


@dataclass(frozen=True)
class RewardReport:
    """How a reward model does on held-out pairs. `length_rule`: accuracy of "the longer reply is better".

    `length_correlation` is Pearson's, of score and length over all replies (NaN where either is constant).
    `matched_accuracy` is over the `matched` pairs of about equal length (NaN without any): what is not length.
    """

    pairs: int
    accuracy: float
    matched: int
    matched_accuracy: float
    length_rule: float
    length_correlation: float
    mean_score: float


def train_reward_model(
    model: Transformer,
    pairs: Sequence[Pair],
    config: RewardModelConfig,
    pad: int,
    seed: int,
    progress: Progress | None = None,
) -> History:
    """Train `model` in place, with a scalar head put on it. Raises ValueError without a pair to train on."""
    used = balance_lengths(pairs, seed) if config.balance_lengths else list(pairs)
    if not used:
        raise ValueError(
            "no pair is left to train on"
            + (": one side is always the longer; set balance_lengths = false" if pairs else "")
        )
    attach_critic(model, own_trunk=False)
    steps: list[list[int]] = []
    for epoch in range(config.epochs):
        steps += shuffled_steps(len(used), config.batch_pairs, seed_of("reward model", seed, epoch))

    def annotate(step: int) -> Annotated:
        return Annotated(scored_batch([(used[i].chosen, used[i].rejected) for i in steps[step]], pad))

    preference = PreferenceLoss(margin=config.margin, centring=config.centring)
    loop = pairwise_loop(len(steps), config.learning_rate, config.micro_batch_rows, config.muon)
    return train(model, annotate, loop, progress, Objective(preference=preference))


def balance_lengths(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """As many pairs whose chosen reply is the longer as pairs whose rejected one is, and all of equal length; drawn
    so that both kinds differ by about the same lengths (nearest first), in the order of `pairs`."""
    difference = [len(pair.chosen.token_ids) - len(pair.rejected.token_ids) for pair in pairs]
    longer = [index for index, value in enumerate(difference) if value > 0]
    shorter = [index for index, value in enumerate(difference) if value < 0]
    few, many = sorted((longer, shorter), key=len)
    random.Random(seed_of("balance lengths", seed)).shuffle(many)
    kept = {index for index, value in enumerate(difference) if value == 0} | set(few)
    left = set(many)
    for index in few:
        partner = min(left, key=lambda other: abs(abs(difference[other]) - abs(difference[index])))
        left.remove(partner)
        kept.add(partner)
    return [pair for index, pair in enumerate(pairs) if index in kept]


def scored_batch(rows: Sequence[Sequence[Example]], pad: int) -> TokenBatch:
    """w_score is +1 at the last token of a row's first reply and -1 at that of its second: the state there has read
    all of the reply. A field speaks of the next token, so each row has one token of padding more."""
    tokens_BT, segment_BT, _ = lay_out_pairs(rows, pad, extra=1)
    w_score = torch.zeros(tokens_BT.shape[0], tokens_BT.shape[1] - 1)
    for index, row in enumerate(rows):
        last = -1
        for sign, item in zip((1.0, -1.0), row, strict=False):
            last += len(item.token_ids)
            w_score[index, last] = sign
    return TokenBatch(tokens_BT, torch.zeros(w_score.shape), segment_BT, w_score=w_score)


def score_replies(model: Transformer, items: Sequence[Example], pad: int, rows: int = 16) -> list[float]:
    """The reward of each prompt with its reply."""
    found = [0.0] * len(items)
    order = sorted(range(len(items)), key=lambda index: len(items[index].token_ids))
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        batch = scored_batch([(items[index],) for index in chosen], pad)
        assert batch.w_score is not None
        values = target_values(model, batch, batch.w_score != 0, rows).sum(1).tolist()
        for index, value in zip(chosen, values, strict=True):
            found[index] = value
    return found


def report(model: Transformer, pairs: Sequence[Pair], pad: int) -> RewardReport:
    """On pairs that it was not trained on."""
    chosen = np.array(score_replies(model, [pair.chosen for pair in pairs], pad))
    rejected = np.array(score_replies(model, [pair.rejected for pair in pairs], pad))
    return report_of(chosen, rejected, *(_reply_lengths(pairs, side) for side in ("chosen", "rejected")))


def report_of(
    chosen_B: np.ndarray, rejected_B: np.ndarray, chosen_length_B: np.ndarray, rejected_length_B: np.ndarray
) -> RewardReport:
    """From scores and reply lengths (in tokens). A tie of scores counts as half right."""
    right_B = (chosen_B > rejected_B) + 0.5 * (chosen_B == rejected_B)
    longer_B = np.maximum(chosen_length_B, rejected_length_B)
    matched_B = np.abs(chosen_length_B - rejected_length_B) <= MATCHED * longer_B
    rule_B = (chosen_length_B > rejected_length_B) + 0.5 * (chosen_length_B == rejected_length_B)
    scores, lengths = np.concatenate([chosen_B, rejected_B]), np.concatenate([chosen_length_B, rejected_length_B])
    varies = len(scores) > 1 and np.ptp(scores) > 0 and np.ptp(lengths) > 0
    return RewardReport(
        pairs=len(chosen_B),
        accuracy=float(right_B.mean()),
        matched=int(matched_B.sum()),
        matched_accuracy=float(right_B[matched_B].mean()) if matched_B.any() else float("nan"),
        length_rule=float(rule_B.mean()),
        length_correlation=float(np.corrcoef(scores, lengths)[0, 1]) if varies else float("nan"),
        mean_score=float(scores.mean()),
    )


def reward_grade(
    model: Transformer,
    tokenizer: ChatTokenizer,
    pad: int,
    version: str,
    tasks: Sequence[Task],
    traces: Sequence[Trace],
    whole_output: bool = False,
) -> list[Score]:
    """Scores of traces as a grader gives them. Without `whole_output` it reads the answer alone, not the thinking (R1's
    helpfulness reward; its safety reward reads all)."""
    items = []
    for task, trace in zip(tasks, traces, strict=True):
        reply = trace.reply if whole_output else trace.answer
        context = tokenizer.render(task.messages)
        ids = (*context, *tokenizer.encode_reply(reply), tokenizer.end)
        items.append(Example(ids, (False,) * len(context) + (True,) * (len(ids) - len(context))))
    grader = GraderRef("reward_model", version)
    return [Score("graded", grader, value) for value in score_replies(model, items, pad)]


def save_reward_model(folder: Path, model: Transformer, tokenizer_json: Path) -> None:
    """A model folder with the head beside it, adapters merged; the model keeps both as they are."""
    critic = detach_critic(model)
    if critic is None:
        raise ValueError("the model has no reward head to save")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.detach().clone() for name, tensor in critic.head.state_dict().items()}, folder / HEAD)
        save_state(folder, model.config, merged_state(model), tokenizer_json)
    finally:
        model.critic = critic


def load_reward_model(folder: Path) -> Transformer:
    """The model with its head on, in evaluation mode. Raises ModelFolderError where either can't be read."""
    model = load_model(folder)
    try:
        attach_critic(model, own_trunk=False).head.load_state_dict(load_file(folder / HEAD))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelFolderError(f"{folder / HEAD} holds no reward head of this model: {error}") from error
    assert critic_of(model) is not None
    return model.eval()


def _reply_lengths(pairs: Sequence[Pair], side: str) -> np.ndarray:
    return np.array([sum(getattr(pair, side).trained) for pair in pairs])
