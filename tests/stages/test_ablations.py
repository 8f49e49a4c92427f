from __future__ import annotations

from pathlib import Path

import pytest

from noria.posttraining.task_set import make_task_set
from noria.recipe import load
from noria.stages import ablations
from noria.stages import s5_posttraining as s5
from noria.stages import s6_evaluation as s6

RECIPE = Path(__file__).parents[2] / "recipes" / "ablations.toml"


@pytest.mark.slow
def test_every_family_has_enough_problems_for_every_arm(tmp_path: Path) -> None:
    recipe = load(RECIPE)
    assert recipe.ablations is not None
    base, registry = s5.tasks(recipe.posttraining, 0), s6.registry(recipe.evaluation)  # only their keys matter here
    one_seed = recipe.ablations.model_copy(update={"seeds": (0,)})
    steps = ablations.arms(one_seed, recipe.posttraining, recipe.evaluation, base, registry, threads=1)
    made = {step.key: step.config for step in steps if step.kind == "tasks"}
    assert len(made) == 2  # with K demonstrations, and with as many as there are
    for number, config in enumerate(made.values()):
        (tmp_path / str(number)).mkdir()
        counts = make_task_set(tmp_path / str(number), lambda *_: None, **config.model_dump())
        assert counts["demonstrations"] >= 7 * recipe.posttraining.demonstrations


def test_each_arm_leaves_out_the_stage_that_it_names() -> None:
    recipe = load(RECIPE.parent / "stages.toml")
    assert recipe.ablations is not None
    base = registry = s6.registry(recipe.evaluation)  # only its key matters here
    settings = recipe.ablations.model_copy(update={"seeds": (0,)})
    steps = ablations.arms(settings, recipe.posttraining, recipe.evaluation, base, registry, threads=1)
    by_key = {step.key: step.name for step in steps}
    last = {arm: next(s for s in steps if s.name == f"evaluate_{arm}_0").input_keys["model"] for arm in settings.arms}

    def chain(key: str) -> list[str]:
        found = []
        while key in by_key:
            step = next(step for step in steps if step.key == key)
            found.insert(0, step.name.split("_four_stages")[0].split("_no_")[0])
            key = step.input_keys.get("model", "")
        return found

    whole = ["cold_start", "reasoning_rl", "rejection_sft", "alignment_rl"]
    assert chain(last["four_stages"]) == whole
    for place, arm in enumerate(("no_reasoning_rl", "no_rejection", "no_alignment"), start=1):
        assert chain(last[arm]) == whole[:place] + whole[place + 1 :]
    assert chain(last["no_cold_start"]) == ["reasoning_rl"]
