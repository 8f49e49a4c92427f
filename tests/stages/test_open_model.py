"""An open model through its whole journey, tiny: killed, it comes to the same; its folder loads in transformers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from noria.artifacts import Artifact, Executor, Store
from noria.assembly import build
from noria.recipe import OpenModelRecipe, load
from noria.recipe_errors import RecipeError
from noria.stages import open_model_tasks
from noria.training.checkpoint import complete
from tests.tiny_model import write_tiny_model

RECIPE = """
[run]
name = "tiny"
[open_model]
folder = "{folder}"
[tasks]
train = 12
heldout = 3
format = 12
[[tasks.families]]
name = "backward"
gym = "spell_backward"
config = {{ min_word_len = 3, max_word_len = 8 }}
prompt = "Backward: {{word}}"
system = "Spell."
shots = 1
[[tasks.unseen]]
name = "ones"
gym = "count_bits"
config = {{ max_n = 100 }}
prompt = "Ones in {{binary}}:"
system = "Count."
[grpo]
precision = "float32"
steps = {steps}
prompts = 4
group = 8
max_tokens = 16
learning_rate = 1e-3
probe_every = 2
probe_tasks = 2
[evaluation]
max_tokens = 4
format_tokens = 8
samples = 2
"""


def write_recipe(folder: Path, steps: int = 3) -> Path:
    model = write_tiny_model(folder / "model", context=192, activation="swiglu")
    path = folder / "tiny.toml"
    path.write_text(RECIPE.format(folder=model, steps=steps))
    return path


def run(recipe: Path, store: Path) -> dict[str, Artifact]:
    loaded = load(recipe)
    opened = Store(store)
    return Executor(opened, loaded.run.name).run(build(loaded, 1, opened))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("journey")
    return run(write_recipe(folder), folder / "store")


@pytest.mark.slow
def test_the_exported_folder_loads_in_transformers_and_computes_the_same(made: dict[str, Artifact]) -> None:
    transformers = pytest.importorskip("transformers")
    from noria.model import load_model

    theirs = transformers.AutoModelForCausalLM.from_pretrained(made["export"].content)
    ours = load_model(made["grpo"].content)
    tokens = torch.arange(12)[None] + 20
    with torch.inference_mode():
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens), atol=1e-4, rtol=1e-4)


def test_training_changes_the_model_and_the_release_is_what_the_verdict_says(made: dict[str, Artifact]) -> None:
    assert made["grpo"].manifest.files["model.safetensors"] != made["model"].manifest.files["model.safetensors"]
    released, decision = made["release"].manifest, made["verdict"].metrics["decision"]
    kept = "grpo" if decision == "release" else "model"
    assert released.files["model.safetensors"].hash == made[kept].manifest.files["model.safetensors"].hash


def test_the_verdict_sees_what_was_said_to_every_held_out_task_and_what_is_right(made: dict[str, Artifact]) -> None:
    rows = json.loads((made["candidates"].content / "candidates.json").read_text())
    tasks = {task.id: task.answer for task in open_model_tasks.read(made["tasks"].content, "heldout")}
    for name in ("incumbent", "grpo"):
        assert rows[name]["gold"] == tasks and rows[name]["replies"].keys() == tasks.keys()
        assert all(len(samples) == 2 for samples in rows[name]["replies"].values())
    (assessment,) = json.loads((made["verdict"].content / "verdict.json").read_text())["assessments"]
    assert "commonest reply" in [check["metric"] for check in assessment["checks"]]


def test_settings_of_speed_are_identity_only_where_they_are_not_the_default(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    plain = {step.name: step for step in build(load(recipe), 1, Store(tmp_path))}["grpo"]
    assert not {"compile", "weight_precision"} & plain.canonical_config.keys()
    text = recipe.read_text().replace("[grpo]", "[grpo]\ncompile = false\nrecompute_activations = true")
    recipe.write_text(text)
    less_memory = {step.name: step for step in build(load(recipe), 1, Store(tmp_path))}["grpo"]
    assert plain.key != less_memory.key and less_memory.canonical_config["recompute_activations"] is True


def test_no_prompt_is_trained_on_and_measured(made: dict[str, Artifact]) -> None:
    tasks = {name: open_model_tasks.read(made["tasks"].content, name) for name in ("train", "heldout", "unseen")}
    prompts = {name: {task.messages[-1].content for task in found} for name, found in tasks.items()}
    assert len(prompts["train"]) == 12 and len(prompts["heldout"]) == 3
    assert not prompts["train"] & (prompts["heldout"] | prompts["unseen"])
    shown = {message.content for message in tasks["train"][0].messages[:-1]}
    assert not shown & (prompts["train"] | prompts["heldout"])


def test_the_same_folder_elsewhere_is_the_same_model_and_another_is_not(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    first, second = (build(load(write_recipe(tmp_path / name)), 1, Store(tmp_path)) for name in ("a", "b"))
    assert [step.key for step in first] == [step.key for step in second]
    write_tiny_model(tmp_path / "b" / "model", context=192, seed=1, activation="swiglu")
    other = build(load(tmp_path / "b" / "tiny.toml"), 1, Store(tmp_path))
    assert first[0].key != other[0].key and first[1].key == other[1].key


@pytest.mark.slow
def test_killed_halfway_it_resumes_to_the_same_result(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, steps=40)
    command = [sys.executable, "-m", "noria", "run", str(recipe), "--store", str(tmp_path / "killed")]
    process = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_checkpoint(tmp_path / "killed", process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    resumed, straight = run(recipe, tmp_path / "killed"), run(recipe, tmp_path / "straight")
    assert {name: item.key for name, item in resumed.items()} == {name: item.key for name, item in straight.items()}
    for name, artifact in straight.items():
        ours = {path: entry.hash for path, entry in resumed[name].manifest.files.items()}
        assert ours == {path: entry.hash for path, entry in artifact.manifest.files.items()}, name


def wait_for_checkpoint(store: Path, process: subprocess.Popen[bytes]) -> None:
    """Until training has kept a state from which it can go on."""
    while process.poll() is None:
        if any(complete(folder) for folder in store.glob("work/*/*/progress")):
            return
        time.sleep(0.02)
    raise AssertionError("the run ended before it could be killed")


def test_what_is_wrong_with_an_open_models_recipe_is_said_with_its_line(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    text = path.read_text().replace("spell_backward", "spell_bckward").replace("[grpo]", "[pretraining]\n[grpo]")
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load(path)
    said = str(caught.value)
    assert "near it: spell_backward" in said and "unknown name pretraining" in said and f"{path}:23" in said


def test_a_config_or_prompt_that_reasoning_gym_refuses_is_refused_before_any_work(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    for old, new, said in (
        ("max_word_len = 8", "max_wrd_len = 8", "max_wrd_len"),
        ("{word}", "{letter}", "letter"),
        ("max_n = 100", "max_n = -1", "max_n"),
    ):
        original = path.read_text()
        path.write_text(original.replace(old, new))
        with pytest.raises(RecipeError, match=said):
            load(path)
        path.write_text(original)
    assert isinstance(load(path), OpenModelRecipe)
