from __future__ import annotations

from pydantic import BaseModel

from noria.artifacts import Executor, Step, why
from noria.artifacts.identity import Change
from noria.artifacts.lineage import forget


def actions(plan):
    return {step.name: step.action for step in plan.steps}


def test_plan_of_a_new_store_runs_all_and_creates_nothing(store, chain):
    plan = Executor(store).plan(chain())
    assert actions(plan) == dict.fromkeys(["words", "counts", "model"], "run")
    assert {step.reason for step in plan.steps} == {"never made"}
    assert not store.root.exists()


def test_changed_field_is_named_and_only_the_steps_below_it_run(store, chain):
    Executor(store).run(chain())
    plan = Executor(store).plan(chain(learning_rate=0.01))
    assert actions(plan) == {"words": "reuse", "counts": "reuse", "model": "run"}
    assert plan.steps[-1].reason == "config.learning_rate: 0.02 -> 0.01"
    assert [(change.path, change.old, change.new) for change in plan.steps[-1].changes] == [
        ("config.learning_rate", 0.02, 0.01)
    ]


def test_changed_input_is_named_with_the_step_it_comes_from(store, chain):
    Executor(store).run(chain())
    old, new = chain(), chain(seed=1)
    plan = Executor(store).plan(new)
    assert actions(plan) == dict.fromkeys(["words", "counts", "model"], "run")
    assert plan.steps[0].reason == "config.seed: 0 -> 1"
    assert plan.steps[2].reason == "new counts"
    assert plan.steps[2].changes == (Change("inputs.counts", old[1].key, new[1].key),)


def test_numerics_are_compared_too(store, chain):
    Executor(store).run(chain())
    assert Executor(store).plan(chain(threads=2)).steps[-1].reason == "numerics.threads: 1 -> 2"


def test_comparison_is_with_the_same_recipes_last_run(store, chain):
    Executor(store, "nano").run(chain(learning_rate=0.1))
    Executor(store, "debug").run(chain(learning_rate=0.2))
    plan = Executor(store, "nano").plan(chain(learning_rate=0.3))
    assert plan.steps[-1].reason == "config.learning_rate: 0.1 -> 0.3"
    assert Executor(store, "new").plan(chain(learning_rate=0.3)).steps[-1].reason == (
        "config.learning_rate: 0.2 -> 0.3"
    )


def test_what_would_run_says_how_long_it_took_last_time_and_in_which_run(store, chain):
    Executor(store, "nano").run(chain(learning_rate=0.1))
    Executor(store, "debug").run(chain(learning_rate=0.2))
    model = Executor(store, "nano").plan(chain(learning_rate=0.3)).steps[-1]
    assert model.last_run == "nano" and model.last_seconds is not None and 0 <= model.last_seconds < 60
    assert Executor(store, "new").plan(chain(learning_rate=0.3)).steps[-1].last_run == "debug"
    words = Executor(store, "nano").plan(chain(learning_rate=0.3)).steps[0]
    assert (words.action, words.last_seconds) == ("reuse", None)


def test_a_step_never_made_has_no_last_time(store, chain):
    assert {step.last_seconds for step in Executor(store).plan(chain()).steps} == {None}


class Graders(BaseModel):
    graders: dict[str, str] | None = None


def test_changed_digests_are_told_by_their_names(store):
    def plan(graders):
        step = Step("rl", "s5", "model", 1, Graders(graders=graders), lambda context: {})
        reason = Executor(store).plan([step]).steps[0].reason
        Executor(store).run([step])
        return reason

    plan({})
    assert plan({"code": "a" * 32, "maths": "b" * 32}) == "config.graders: code, maths changed"
    assert plan({"code": "c" * 32, "maths": "b" * 32}) == "config.graders: code changed"
    assert plan(None) == "config.graders: code, maths changed"


def test_removed_artifact_is_said_to_be_gone(store, chain):
    Executor(store).run(chain())
    store.remove(chain()[-1].key)
    assert Executor(store).plan(chain()).steps[-1].reason == "made before, no longer in the store"


def test_why_tells_config_inputs_reason_aliases_and_marks(store, chain):
    Executor(store).run(chain())
    made = Executor(store).run(chain(learning_rate=0.01))["model"]
    store.move_alias("release/prod", made.key, "verdict")
    answer = why(store, made.key)
    assert answer.manifest.config == {"learning_rate": 0.01, "steps": 5}
    assert answer.inputs == (("counts", chain()[1].key, "counts"),)
    assert answer.history[0]["reason"] == "config.learning_rate: 0.02 -> 0.01"
    assert [move.name for move in answer.aliases] == ["release/prod"]
    assert answer.marks == ()


def test_marks_show_in_the_plan(store, chain, tmp_path):
    (tmp_path / "log.jsonl").write_text('{"user": "ann"}\n')
    traffic = store.import_content("traffic", tmp_path / "log.jsonl")
    steps = chain()
    object.__setattr__(steps[1], "inputs", {**steps[1].inputs, "traffic": traffic})
    Executor(store).run(steps)
    forget(store, "user", "ann", "asked by mail")
    plan = Executor(store).plan(steps)
    assert [[mark.name for mark in step.marks] for step in plan.steps] == [[], ["ann"], ["ann"]]
