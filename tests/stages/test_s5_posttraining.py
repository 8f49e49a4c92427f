"""The four stages as steps: what each option changes, and that a recipe without options keeps its keys."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from noria.artifacts import Numerics
from noria.assembly import build
from noria.evals.tasks import demonstrate, generate
from noria.posttraining.rejection import select_demonstrations
from noria.posttraining.rewards import TrainingGrader, language_consistency, without_language
from noria.posttraining.task_set import make_task_set
from noria.recipe import load
from noria.recipe_errors import RecipeError
from noria.types import Message, Node, Trace
from tests.tiny_model import write_tiny_model

RECIPE = Path(__file__).parent.parent.parent / "recipes" / "debug.toml"
REASONING = "posttraining.reasoning"


def said(reply: str, task_id: str) -> Trace:
    return Trace("t", task_id, (Node((), Message("assistant", reply)),), 0, "plain", "finished")


def steps(*overrides: str) -> dict[str, Any]:
    store: Any = SimpleNamespace(get=lambda key: SimpleNamespace(key=key), alias=lambda name: None)
    return {step.name: step for step in build(load(RECIPE, overrides), 1, store)}


def test_a_setting_left_at_its_default_is_no_part_of_a_key():
    """Options came later: a recipe without them must find what it made before."""
    plain = steps()
    assert "options" not in plain["reasoning_rl"].config.model_dump()
    assert (
        steps(f"{REASONING}.language_reward=0.0", "posttraining.rounds=1", "posttraining.preference_share=1")[
            "alignment_rl"
        ].key
        == plain["alignment_rl"].key
    )


@pytest.mark.parametrize(
    ("override", "first"),
    [
        ("posttraining.select_cold_start=true", "cold_start"),
        (f"{REASONING}.options={{lag=1}}", "reasoning_rl"),
        (f"{REASONING}.language_reward=0.1", "reasoning_rl"),
        (f"{REASONING}.advantage='rank'", "reasoning_rl"),
        ("posttraining.preference_share=0.5", "alignment_rl"),
    ],
)
def test_an_option_changes_the_key_of_its_own_step_and_of_none_before(override, first):
    plain, changed = steps(), steps(override)
    chain = ["cold_start", "reasoning_rl", "rejection_sft", "alignment_rl"]
    place = chain.index(first)
    assert [plain[name].key == changed[name].key for name in chain] == [True] * place + [False] * (4 - place)


def test_two_rounds_go_back_from_alignment_to_rejection_sampling():
    made = steps("posttraining.rounds=2")
    assert made["rejection_sft_2"].input_keys["model"] == made["alignment_rl"].key
    assert made["alignment_rl_2"].input_keys["model"] == made["rejection_sft_2"].key
    assert made["rejection_sft_2"].config.seed != made["rejection_sft"].config.seed
    assert made["evaluate_alignment_rl"].input_keys["model"] == made["alignment_rl_2"].key
    assert made["alignment_rl"].key == steps()["alignment_rl"].key


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (f"{REASONING}.options={{loss='gspo'}}", 'set aggregation = "sequence"'),
        (f"{REASONING}.options={{los='gspo'}}", "los: Extra inputs are not permitted"),
        (f"{REASONING}.options={{lag=1, steps=3}}", "options repeats steps"),
        (f"{REASONING}.options={{lag=-1}}", "greater than or equal to 0"),
    ],
)
def test_options_are_checked_when_the_recipe_is_loaded(override, said):
    with pytest.raises(RecipeError, match=r"posttraining\.reasoning") as refused:
        load(RECIPE, [override])
    assert said in str(refused.value)


def test_every_generated_demonstration_passes_the_selection_and_a_spoilt_one_does_not():
    shown = [
        (task, demonstrate(task)) for family in ("addition", "boolean") for task in generate(family, 12, 0, "train")
    ]
    kept, counts = select_demonstrations(shown)
    assert kept == shown and counts == {"demonstrations_kept": 24}
    task, reply = shown[0]
    spoilt = [
        (task, reply.replace("<think>", "<think>сначала ")),
        (task, "<think>no</think>wrong"),
        (task, task.answer),
    ]
    kept, counts = select_demonstrations([*spoilt, shown[1]])
    assert kept == [shown[1]]
    assert counts == {
        "demonstrations_kept": 1,
        "demonstrations_mixed_language": 1,
        "demonstrations_unreadable": 1,
        "demonstrations_wrong": 1,
    }


@pytest.mark.parametrize(
    ("text", "language", "share"),
    [
        ("add two and two", "en", 1.0),
        ("add два and 二", "en", 0.5),
        ("先 add 三", "zh", 2 / 3),
        ("2 + 2 = 4", "en", 1.0),
        ("", "zh", 1.0),
        ("mixedслово", "en", 0.0),
    ],
)
def test_language_consistency_is_the_share_of_words_in_the_script(text, language, share):
    assert language_consistency(text, language) == pytest.approx(share)


def test_the_language_reward_is_added_on_reasoning_tasks_alone_and_monitors_see_through_it():
    (reasoning,), (helpful,) = generate("addition", 1, 0, "train"), generate("helpful", 1, 0, "train")
    right = f"<think>so два</think>{reasoning.answer}"
    traces = [said(right, reasoning.id), said("<think>так</think>hello", helpful.id)]
    plain = TrainingGrader(weak=False).grade([reasoning, helpful], traces)
    grader = TrainingGrader(weak=False, language_weight=0.4)
    scores = grader.grade([reasoning, helpful], traces)
    assert scores[0].value == pytest.approx(1.0 + 0.4 * 0.5) and scores[0].components["language"] == 0.5
    assert scores[1] == plain[1] and without_language(scores[0]).value == 1.0
    watched = grader.monitor(0, [reasoning, helpful], traces, scores)
    assert watched["gap"] == 0.0 and watched["component_language"] == 0.5
    assert (
        watched["exact_reward"] == TrainingGrader(False).monitor(0, [reasoning, helpful], traces, plain)["exact_reward"]
    )


def ran(step: Any, folder: Path, inputs: dict[str, Path]) -> list[dict[str, float]]:
    """The step's history, run as the executor would."""
    content, progress = folder / "content", folder / "progress"
    content.mkdir(parents=True)
    context = SimpleNamespace(
        config=step.config,
        inputs={name: SimpleNamespace(content=path) for name, path in inputs.items()},
        content=content,
        progress=progress,
        observed=folder,
        numerics=Numerics(),
        step_name=step.name,
        report=lambda *_: None,
        log=lambda *_, **__: None,
        event=lambda *_, **__: None,
    )
    step.run(context)
    return json.loads((content / "history.json").read_text())


@pytest.mark.slow
def test_preference_rewards_come_only_in_the_last_part_and_options_reach_the_loop(tmp_path):
    model = write_tiny_model(tmp_path / "model")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    make_task_set(tasks, lambda *_: None, demonstrations=4, rl_tasks=6, general_demonstrations=4, seed=0)
    inputs = {"model": model, "tasks": tasks}
    made = steps(
        "posttraining.preference_share=0.34",
        "posttraining.alignment={steps=3, prompts=24, group=2, options={lag=1, importance='band', minibatches=2}}",
    )
    history = ran(made["alignment_rl"], tmp_path / "made", inputs)
    assert len(history) == 6
    seen = ["reward_helpful" in row or "reward_safety" in row for row in history]
    assert seen == [False] * 4 + [True] * 2
    assert [row["policy_lag"] for row in history] == [0, 0, 2, 2, 2, 2]
