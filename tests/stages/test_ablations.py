from __future__ import annotations

from pathlib import Path

from noria.posttraining.task_set import make_task_set
from noria.recipe import load
from noria.stages import ablations
from noria.stages import s5_posttraining as s5
from noria.stages import s6_evaluation as s6

RECIPE = Path(__file__).parents[2] / "recipes" / "ablations.toml"


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
