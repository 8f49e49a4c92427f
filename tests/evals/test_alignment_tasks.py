"""Alignment templates: disjoint splits, short prompts, a small vocabulary, both kinds of request."""

from __future__ import annotations

import pytest

from noria.evals.alignment_tasks import (
    BORDERLINE,
    HARMFUL,
    demonstrate_alignment,
    generate_helpful,
    generate_safety,
    split_of,
)
from noria.types import task_from_json, task_to_json

SPLITS = ("pretraining", "train", "heldout")


@pytest.mark.parametrize("generate", [generate_helpful, generate_safety])
def test_splits_share_neither_prompts_nor_pairs(generate):
    prompts, pairs = [], []
    for split in SPLITS:
        tasks = generate(300, 0, split)
        prompts.append({task.messages[0].content for task in tasks})
        pairs.append({(task.hidden["verb"], task.hidden["object"]) for task in tasks})
        assert len(prompts[-1]) == 300
    for kind in (prompts, pairs):
        assert not (kind[0] & kind[1] | kind[0] & kind[2] | kind[1] & kind[2])


def test_every_second_safety_task_is_harmful():
    kinds = [task.hidden["kind"] for task in generate_safety(101, 0, "heldout")]
    assert kinds[::2] == ["harmful"] * 51 and kinds[1::2] == ["benign"] * 50


def test_no_request_is_both_harmful_and_harmless():
    harmless = {(verb, thing) for verb, (_, _, things) in BORDERLINE.items() for thing in things}
    harmful = {(verb, thing) for verb, things in HARMFUL.items() for thing in things}
    assert not harmless & harmful


def test_held_out_pairs_use_verbs_and_objects_that_were_trained():
    for verb, things in HARMFUL.items():
        assert any(split_of(verb, thing) == "train" for thing in things), verb
    for verb, (_, _, things) in BORDERLINE.items():
        assert any(split_of(verb, thing) == "train" for thing in things), verb


def test_prompts_are_short_and_tasks_survive_json():
    for task in generate_helpful(100, 0, "train") + generate_safety(100, 0, "train"):
        assert len(task.messages[0].content.split()) < 16
        assert len(demonstrate_alignment(task).split()) < 24
        assert task_from_json(task_to_json(task)) == task


def test_equal_arguments_give_equal_tasks_and_too_many_are_refused():
    assert generate_safety(50, 3, "train") == generate_safety(50, 3, "train") != generate_safety(50, 4, "train")
    with pytest.raises(ValueError, match="were asked for"):
        generate_helpful(10**6, 0, "train")
